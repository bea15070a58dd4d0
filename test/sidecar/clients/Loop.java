import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Calls a URL for each line of standard input, in one process. */
public class Loop {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String url; (url = in.readLine()) != null;) {
            try {
                HttpResponse<String> r = client.send(HttpRequest.newBuilder(URI.create(url)).build(), HttpResponse.BodyHandlers.ofString());
                System.out.println("status " + r.statusCode() + " " + r.body().trim());
            } catch (Exception e) {
                System.out.println("failed " + e);
            }
        }
    }
}
