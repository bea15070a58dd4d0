. "$S/steps.sh"
c() { curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$@"; }

for n in $SIZES; do
	random "$n" "$HOME/data"
	stored "put $n" "${PREFIX}object-$n" "$HOME/data" c -T "$HOME/data" "$ENDPOINT/alpha/${PREFIX}object-$n"
	step "get $n" fetched "$HOME/data" c -o fetched "$ENDPOINT/alpha/${PREFIX}object-$n"
done
rm -f fetched
echo 0123456789 >data
head -c 5 data >five
stored "put for ranges" "${PREFIX}range" data c -T data "$ENDPOINT/alpha/${PREFIX}range"
step range fetched five c -r 0-4 -o fetched "$ENDPOINT/alpha/${PREFIX}range"
step copy c -X PUT -H "x-amz-copy-source: alpha/readonly/seed" "$ENDPOINT/alpha/${PREFIX}copy"
step list sh -c 'curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$ENDPOINT/alpha?list-type=2&prefix=$PREFIX" | grep "<Key>"'
step delete c -X DELETE "$ENDPOINT/alpha/${PREFIX}copy"

step "denied get, other bucket" c "$ENDPOINT/beta/desk/seed"
step "denied put, other bucket" c -T data "$ENDPOINT/beta/desk/new"
step "denied get, other key" c "$ENDPOINT/alpha/private/seed"
step "denied put, other key" c -T data "$ENDPOINT/alpha/private/new"
step "denied put, other action" c -T data "$ENDPOINT/alpha/readonly/new"
step "denied delete, other action" c -X DELETE "$ENDPOINT/alpha/readonly/seed"
step "denied copy, other source" c -X PUT -H "x-amz-copy-source: alpha/private/seed" "$ENDPOINT/alpha/${PREFIX}stolen"
step "denied list" c "$ENDPOINT/alpha?list-type=2&prefix=private/"
step "refused dot segments" c --path-as-is "$ENDPOINT/alpha/desk/../private/seed"
step "refused encoded dot segments" c --path-as-is "$ENDPOINT/alpha/desk/%2e%2e/private/seed"
step "denied without a signature" curl -sS --fail-with-body "$ENDPOINT/alpha/${PREFIX}range"
step "denied another's key" curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --user AKIAIOSFODNN7EXAMPLE:secret "$ENDPOINT/alpha/${PREFIX}range"
step "denied another region" curl -sS --fail-with-body --aws-sigv4 aws:amz:eu-west-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$ENDPOINT/alpha/${PREFIX}range"
step "denied another service" curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:sqs --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$ENDPOINT/alpha/${PREFIX}range"
