. "$S/steps.sh"
s3() { /usr/bin/aws --endpoint-url "$ENDPOINT" --region us-east-1 --cli-read-timeout 120 s3 "$@"; }
api() { /usr/bin/aws --endpoint-url "$ENDPOINT" --region us-east-1 s3api "$@"; }

for n in $SIZES; do
	random "$n" "$HOME/data"
	stored "put $n" "${PREFIX}object-$n" "$HOME/data" s3 cp --only-show-errors "$HOME/data" "s3://alpha/${PREFIX}object-$n"
	step "get $n" fetched "$HOME/data" s3 cp --only-show-errors "s3://alpha/${PREFIX}object-$n" fetched
done
random "$BIG" "$HOME/data"
stored multipart "${PREFIX}multipart" "$HOME/data" s3 cp --only-show-errors "$HOME/data" "s3://alpha/${PREFIX}multipart"
step "get multipart" fetched "$HOME/data" s3 cp --only-show-errors "s3://alpha/${PREFIX}multipart" fetched
rm -f fetched
echo 0123456789 >data
stored "trailing checksum" "${PREFIX}checksum" data api put-object --bucket alpha --key "${PREFIX}checksum" --body data --checksum-algorithm CRC32
head -c 5 data >five
step range fetched five api get-object --bucket alpha --key "${PREFIX}checksum" --range bytes=0-4 fetched
step copy s3 cp --only-show-errors s3://alpha/readonly/seed "s3://alpha/${PREFIX}copy"
step list sh -c '/usr/bin/aws --endpoint-url "$ENDPOINT" --region us-east-1 s3 ls "s3://alpha/$PREFIX" | grep copy'
url=$(s3 presign "s3://alpha/${PREFIX}checksum")
step "presigned get" fetched data curl -sS --fail-with-body -o fetched "$url"
step "delete many" api delete-objects --bucket alpha --delete "Objects=[{Key=${PREFIX}nothing},{Key=${PREFIX}none}]"
step delete s3 rm --only-show-errors "s3://alpha/${PREFIX}copy"

step "denied get, other bucket" api get-object --bucket beta --key desk/seed stolen
step "denied put, other bucket" s3 cp --only-show-errors data s3://beta/desk/new
step "denied get, other key" api get-object --bucket alpha --key private/seed stolen
step "denied put, other key" s3 cp --only-show-errors data s3://alpha/private/new
step "denied put, other action" s3 cp --only-show-errors data s3://alpha/readonly/new
step "denied delete, other action" s3 rm --only-show-errors s3://alpha/readonly/seed
step "denied copy, other source" api copy-object --bucket alpha --key "${PREFIX}stolen" --copy-source alpha/private/seed
step "denied list" s3 ls s3://alpha/private/
step "denied list, buckets" s3 ls
url=$(s3 presign s3://alpha/private/seed)
step "denied presigned get" curl -sS --fail-with-body "$url"
