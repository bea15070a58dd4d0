import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** java Http.java connection|client URL. */
public class Http {
    public static void main(String[] args) throws Exception {
        URI uri = URI.create(args[1]);
        if (args[0].equals("connection")) {
            HttpURLConnection c = (HttpURLConnection) uri.toURL().openConnection();
            System.out.println(c.getResponseCode() + " " + c.getHeaderFields());
            System.out.println(new String(c.getInputStream().readAllBytes())); // throws on 403
            return;
        }
        HttpResponse<String> r = HttpClient.newHttpClient().send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(r.statusCode() + " " + r.version() + " " + r.headers().map());
        System.out.println(r.body());
    }
}
