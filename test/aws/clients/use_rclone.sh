. "$S/steps.sh"
# rclone cannot start where this is set; SSL_CERT_FILE does for it.
unset AWS_CA_BUNDLE
export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_M_TYPE=s3 RCLONE_CONFIG_M_PROVIDER=Minio RCLONE_CONFIG_M_ENV_AUTH=true
export RCLONE_CONFIG_M_ENDPOINT="$ENDPOINT" RCLONE_CONFIG_M_REGION=us-east-1 RCLONE_S3_NO_CHECK_BUCKET=true
export RCLONE_S3_CHUNK_SIZE=5Mi RCLONE_S3_UPLOAD_CUTOFF=5Mi RCLONE_S3_UPLOAD_CONCURRENCY=2 RCLONE_RETRIES=1 RCLONE_LOW_LEVEL_RETRIES=1
c() { /usr/bin/rclone "$@"; }

for n in $SIZES; do
	random "$n" "$HOME/data"
	stored "put $n" "${PREFIX}object-$n" "$HOME/data" c copyto "$HOME/data" "m:alpha/${PREFIX}object-$n"
	step "get $n" fetched "$HOME/data" c copyto "m:alpha/${PREFIX}object-$n" fetched
done
random "$BIG" "$HOME/data"
stored multipart "${PREFIX}multipart" "$HOME/data" c copyto "$HOME/data" "m:alpha/${PREFIX}multipart"
step "get multipart" fetched "$HOME/data" c copyto "m:alpha/${PREFIX}multipart" fetched
rm -f fetched
echo 0123456789 >data
step copy c copyto m:alpha/readonly/seed "m:alpha/${PREFIX}copy"
step list sh -c '/usr/bin/rclone lsf "m:alpha/$PREFIX" | grep copy'
step delete c deletefile "m:alpha/${PREFIX}copy"

step "denied put, other bucket" c copyto data m:beta/desk/new
step "denied put, other key" c copyto data m:alpha/private/new
step "denied put, other action" c copyto data m:alpha/readonly/new
step "denied delete, other action" c deletefile m:alpha/readonly/seed
step "denied get, other key" c copyto m:alpha/private/seed stolen
step "denied list" c lsf m:alpha/private/
