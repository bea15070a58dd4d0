# Steps of clients that are commands. Each prints one line of JSON.

# step NAME COMMAND...
step() {
	name=$1
	shift
	if said=$("$@" 2>&1); then
		printf '{"step":"%s"}\n' "$name"
	else
		printf '%s' "$said" | /usr/bin/python3 -c 'import json, sys
print(json.dumps({"step": sys.argv[1], "error": sys.stdin.read() or "no output"}))' "$name"
	fi
}

# stored NAME KEY FILE COMMAND...: what the command leaves at KEY is FILE.
stored() {
	name=$1 key=$2 file=$3
	shift 3
	line=$(step "$name" "$@")
	case $line in
	*'"error"'*) printf '%s\n' "$line" ;;
	*) printf '{"step":"%s","key":"%s","sha256":"%s"}\n' "$name" "$key" "$(sha256sum <"$file" | cut -d' ' -f1)" ;;
	esac
}

# fetched FILE COMMAND...: the command makes ./fetched, which must equal FILE.
fetched() {
	want=$1
	shift
	rm -f fetched
	"$@" && cmp fetched "$want"
}

# random SIZE FILE
random() { head -c "$1" /dev/urandom >"$2"; }
