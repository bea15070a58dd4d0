. "$S/steps.sh"
# s3cmd reads its settings from a file, proxy and roots included. Without
# --acl-private a copy reads its source's ACL, an action that MinIO lacks.
proxy=${HTTPS_PROXY#http://}
proxy=${proxy%/}
cat >s3cfg <<F
[default]
access_key = $AWS_ACCESS_KEY_ID
secret_key = $AWS_SECRET_ACCESS_KEY
host_base = ${ENDPOINT#https://}
host_bucket = ${ENDPOINT#https://}
bucket_location = us-east-1
use_https = True
ca_certs_file = $SSL_CERT_FILE
proxy_host = ${proxy%:*}
proxy_port = ${proxy##*:}
multipart_chunk_size_mb = 5
max_retries = 1
F
c() { /usr/bin/s3cmd -c s3cfg -q --no-progress "$@"; }

for n in $SIZES; do
	random "$n" "$HOME/data"
	stored "put $n" "${PREFIX}object-$n" "$HOME/data" c put "$HOME/data" "s3://alpha/${PREFIX}object-$n"
	step "get $n" fetched "$HOME/data" c get --force "s3://alpha/${PREFIX}object-$n" fetched
done
random "$BIG" "$HOME/data"
stored multipart "${PREFIX}multipart" "$HOME/data" c put "$HOME/data" "s3://alpha/${PREFIX}multipart"
step "get multipart" fetched "$HOME/data" c get --force "s3://alpha/${PREFIX}multipart" fetched
rm -f fetched
echo 0123456789 >data
step copy c cp --acl-private s3://alpha/readonly/seed "s3://alpha/${PREFIX}copy"
step list sh -c '/usr/bin/s3cmd -c s3cfg ls "s3://alpha/$PREFIX" | grep copy'
step delete c del "s3://alpha/${PREFIX}copy"

step "denied get, other bucket" c get --force s3://beta/desk/seed stolen
step "denied put, other bucket" c put data s3://beta/desk/new
step "denied get, other key" c get --force s3://alpha/private/seed stolen
step "denied put, other key" c put data s3://alpha/private/new
step "denied put, other action" c put data s3://alpha/readonly/new
step "denied delete, other action" c del s3://alpha/readonly/seed
step "denied copy, other source" c cp --acl-private s3://alpha/private/seed "s3://alpha/${PREFIX}stolen"
step "denied list" c ls s3://alpha/private/
