# Ruby's own net/http: an answer, then the event stream as it arrives.
require "net/http"

uri = URI(ARGV[0])
Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https") do |http|
  res = http.get(uri.path)
  puts res.code, res.to_hash.inspect, res.body
  exit 1 unless res.is_a?(Net::HTTPSuccess)
  http.request_get(uri.path.sub("echo", "sse")) { |events| events.read_body { |part| print part } }
end
