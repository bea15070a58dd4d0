import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/** Fetches a URL with one of Java's two clients; any HTTP answer is success. */
class Probe {
    public static void main(String[] args) throws Exception {
        URI url = URI.create(args[1]);
        if (args[0].equals("url")) {
            HttpURLConnection c = (HttpURLConnection) url.toURL().openConnection();
            c.setConnectTimeout(15000);
            c.setReadTimeout(15000);
            c.getResponseCode();
            return;
        }
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(15)).build();
        HttpRequest request = HttpRequest.newBuilder(url).timeout(Duration.ofSeconds(15)).build();
        client.send(request, HttpResponse.BodyHandlers.discarding());
    }
}
