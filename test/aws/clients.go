package main

// client is one unchanged program with the steps that it must manage.
type client struct {
	name    string
	version string // shell command that prints it
	command string // shell; $S is the folder of scripts, $PROGRAMS that of built ones
	env     []string
	short   bool // part of the short form
	// mute are steps whose denial shows only a status: HEAD has no body, and
	// some programs print none.
	mute []string
	// plain clients fetch no planted answers before their steps.
	plain bool
	// least is how many steps there have to be: a client that stops early
	// passes nothing.
	least int
}

const (
	direct   = "ENDPOINT=https://" + storeHost
	baseHTTP = "ENDPOINT=$STORE_BASE_URL" // expanded inside the run
	baseTLS  = "ENDPOINT=$STORE_SECURE_BASE_URL"
)

// clients are in the order of the report.
func clients(short bool) []client {
	python := "/usr/bin/python3 $S/use_boto3.py"
	all := []client{
		{name: "boto3", version: "/usr/bin/python3 -c 'import boto3; print(boto3.__version__)'", command: python, env: []string{direct}, short: true, least: 37},
		{name: "boto3, virtual-hosted", version: "true", command: python, env: []string{direct, "STYLE=virtual"}, least: 37},
		{name: "boto3, base URL", version: "true", command: python, env: []string{baseHTTP}, least: 37},
		{name: "aws-sdk-go-v2", version: "go version -m $PROGRAMS/awsgo | grep -m1 service/s3 | cut -f4", command: "$PROGRAMS/awsgo", env: []string{direct}, short: true, least: 34},
		{name: "aws-sdk-go-v2, virtual-hosted", version: "true", command: "$PROGRAMS/awsgo", env: []string{direct, "STYLE=virtual"}, least: 34},
		{name: "@aws-sdk/client-s3", version: "node -p \"require('$S/node_modules/@aws-sdk/client-s3/package.json').version\"", command: "node $S/use_sdk.mjs", env: []string{direct}, short: true, least: 37},
		{name: "@aws-sdk/client-s3, base URL", version: "true", command: "node $S/use_sdk.mjs", env: []string{baseTLS}, least: 37},
		{name: "minio-go", version: "go version -m $PROGRAMS/miniogo | grep -m1 minio-go | cut -f4", command: "$PROGRAMS/miniogo", env: []string{direct}, short: true, least: 25},
		{name: "aws CLI", version: "/usr/bin/aws --version | cut -d' ' -f1", command: ". $S/use_cli.sh", env: []string{direct}, least: 25},
		{name: "curl --aws-sigv4", version: "curl --version | head -1 | cut -d' ' -f2", command: ". $S/use_curl.sh", env: []string{direct}, short: true, least: 25},
		{name: "s3cmd", version: "/usr/bin/s3cmd --version | cut -d' ' -f3", command: ". $S/use_s3cmd.sh", env: []string{direct}, least: 19,
			mute: []string{"denied get, other bucket", "denied get, other key", "denied copy, other source"}},
		{name: "rclone", version: "/usr/bin/rclone version | head -1 | cut -d' ' -f2", command: ". $S/use_rclone.sh", env: []string{direct}, least: 17},
	}
	if !short {
		return all
	}
	var out []client
	for _, c := range all {
		if c.short {
			out = append(out, c)
		}
	}
	return out
}
