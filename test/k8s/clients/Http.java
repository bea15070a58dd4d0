import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** java Http PERIOD_MS URL: calls without end, one line for each call; once with a period of 0. */
public class Http {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newBuilder().proxy(java.net.ProxySelector.getDefault()).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[1])).timeout(java.time.Duration.ofSeconds(60)).build();
        while (true) {
            try {
                HttpResponse<String> r = client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println("{\"status\":" + r.statusCode() + "}");
            } catch (java.io.IOException e) {
                System.out.println("{\"status\":0,\"error\":\"" + e.getClass().getSimpleName() + "\"}");
            }
            if (args[0].equals("0")) {
                return;
            }
            Thread.sleep(Long.parseLong(args[0]));
        }
    }
}
