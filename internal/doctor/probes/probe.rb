# Fetches a URL; any HTTP answer is success.
require "net/http"
Net::HTTP.get_response(URI(ARGV[0]))
