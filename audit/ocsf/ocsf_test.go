package ocsf_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/internal/golden"
	"github.com/attache-dev/attache/audit/ocsf"
)

// TestGolden maps a record of each protocol, outcome and event, holds what comes
// out to the published schema, and to what it was. UPDATE=1 rewrites the files.
func TestGolden(t *testing.T) {
	s := loadSchema(t)
	dir := filepath.Join("testdata", "golden")
	var names []string
	for _, n := range golden.Records() {
		t.Run(n.Name, func(t *testing.T) {
			events := ocsf.Events(&n.Record)
			for _, e := range reread(t, events) {
				for _, wrong := range s.check(t, e) {
					t.Error(wrong)
				}
				un, _ := e["unmapped"].(map[string]any)
				for k := range un {
					if !slices.Contains(ocsf.Unmapped, k) {
						t.Errorf("unmapped has %s, which is not listed", k)
					}
				}
			}
			got, err := json.MarshalIndent(events, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join(dir, n.Name+".json")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v; UPDATE=1 writes it", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
		})
		names = append(names, n.Name+".json")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(names, f.Name()) {
			t.Errorf("testdata/golden/%s belongs to no record", f.Name())
		}
	}
}

func reread(t testing.TB, events []ocsf.Object) []map[string]any {
	t.Helper()
	b, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	var l []map[string]any
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestEveryEventHasAGolden fails when audit names an event that the goldens lack.
func TestEveryEventHasAGolden(t *testing.T) {
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, e := range golden.Events() {
		have[e.Name] = true
	}
	n := 0
	named := regexp.MustCompile(`(?m)^(?:const |\t)Event[A-Z]\w*\s*= "([a-z._]+)"`)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(src), -1) {
			n++
			if !have[m[1]] {
				t.Errorf("no golden record of %s", m[1])
			}
		}
	}
	if n < 40 {
		t.Fatalf("found %d events", n)
	}
}

// TestClasses holds each kind of record to the class that docs/audit-schema.md names.
func TestClasses(t *testing.T) {
	want := map[string][]int{
		"http-ok": {6003}, "grpc-denied": {6003}, "websocket-ok": {6003}, "aws-ok": {6003}, "tls-ok": {4001}, "sql-ok": {6005}, "ssh-ok": {4007},
		"event-credential-minted": {3002, 3003}, "event-credential-revoked": {3005}, "event-policy-changed": {3004}, "event-guard-denied": {6003},
		"event-login-failed": {3002}, "event-audit-query": {6005}, "event-producer-lost": {6008}, "heartbeat": {0}, "epoch-open": {6002},
	}
	for _, n := range golden.Records() {
		var got []int
		for _, e := range ocsf.Events(&n.Record) {
			got = append(got, e["class_uid"].(int))
		}
		if w, ok := want[n.Name]; ok && !slices.Equal(got, w) {
			t.Errorf("%s: %v, want %v", n.Name, got, w)
		}
		delete(want, n.Name)
	}
	if len(want) > 0 {
		t.Errorf("no record of %v", want)
	}
}

// TestActivity holds operations to what they do.
func TestActivity(t *testing.T) {
	const create, read, update, del, other = 1, 2, 3, 4, 99
	for op, want := range map[string]int{
		"GetObject": read, "ListObjectsV2": read, "PutObject": update, "DeleteObject": del, "CreateBucket": create, "BatchGetItem": read,
		"BatchWriteItem": create, "DescribeInstances": read, "RunInstances": create, "TerminateInstances": del, "TransactWriteItems": create,
		"AdminCreateUser": create, "": other, "Frobnicate": other, "HeadObject": read, "UploadPart": create, "AbortMultipartUpload": del,
	} {
		r := audit.Record{Request: &audit.Request{Method: "POST"}, Credential: &audit.Use{AWS: &audit.AWSUse{Operation: op}}}
		if op == "" {
			r.Request.Method = "BREW"
		}
		if got := ocsf.Events(&r)[0]["activity_id"]; got != want {
			t.Errorf("%s: activity %v, want %d", op, got, want)
		}
	}
	for method, want := range map[string]int{"GET": read, "HEAD": read, "POST": create, "PUT": update, "PATCH": update, "DELETE": del, "BREW": other} {
		r := audit.Record{Request: &audit.Request{Method: method, Path: "/x"}}
		if got := ocsf.Events(&r)[0]["activity_id"]; got != want {
			t.Errorf("%s: activity %v, want %d", method, got, want)
		}
	}
	for path, want := range map[string]int{"/a.B/GetThing": read, "/a.B/DeleteThing": del, "/a.B/Handle": other} {
		r := audit.Record{Request: &audit.Request{Method: "POST", Protocol: "grpc", Path: path}}
		if got := ocsf.Events(&r)[0]["activity_id"]; got != want {
			t.Errorf("%s: activity %v, want %d", path, got, want)
		}
	}
}

// TestWhoIsWho: the human is the user, the agent the application, the chain of
// agents is told, and the handle joins issuance, use and revocation.
func TestWhoIsWho(t *testing.T) {
	seen := 0
	for _, n := range golden.Records() {
		for _, e := range reread(t, ocsf.Events(&n.Record)) {
			meta := e["metadata"].(map[string]any)
			switch n.Name {
			case "http-ok":
				a := e["actor"].(map[string]any)
				if a["user"].(map[string]any)["uid"] != n.Record.Human.Subject || a["app_uid"] != n.Record.Workload.ID {
					t.Errorf("actor %v", a)
				}
				if l := e["unmapped"].(map[string]any)["actors"].([]any); len(l) != 2 {
					t.Errorf("actors %v", l)
				}
				if meta["uid"] != n.Record.ID || meta["sequence"] != float64(17) {
					t.Errorf("metadata %v", meta)
				}
				fallthrough
			case "event-credential-minted", "event-credential-revoked":
				seen++
				if meta["correlation_uid"] != golden.Handle {
					t.Errorf("%s: correlation_uid %v", n.Name, meta["correlation_uid"])
				}
			}
		}
	}
	if seen != 4 {
		t.Errorf("%d events seen, want 4", seen)
	}
}

func TestValidatorFindsWhatIsWrong(t *testing.T) {
	s := loadSchema(t)
	for name, change := range map[string]func(map[string]any){
		"required": func(e map[string]any) { delete(e, "src_endpoint") },
		"nested":   func(e map[string]any) { delete(e["api"].(map[string]any), "operation") },
		"unknown":  func(e map[string]any) { e["colour"] = "blue" },
		"enum":     func(e map[string]any) { e["severity_id"] = 42.0 },
		"activity": func(e map[string]any) { e["activity_id"], e["type_uid"] = 5.0, 600305.0 },
		"type_uid": func(e map[string]any) { e["type_uid"] = 600301.0 },
		"caption":  func(e map[string]any) { e["status"] = "Fine" },
		"at_least_one": func(e map[string]any) {
			e["actor"] = map[string]any{"authorizations": []any{map[string]any{"decision": "deny"}}}
		},
		"profile":    func(e map[string]any) { e["cloud"] = map[string]any{"provider": "x"} },
		"not named":  func(e map[string]any) { e["metadata"].(map[string]any)["profiles"] = []any{"security_control"} },
		"type":       func(e map[string]any) { e["time"] = "now" },
		"integer":    func(e map[string]any) { e["time"] = 1.5 },
		"ip":         func(e map[string]any) { e["dst_endpoint"].(map[string]any)["ip"] = "999.1.1.1" },
		"port":       func(e map[string]any) { e["dst_endpoint"].(map[string]any)["port"] = 70000.0 },
		"deprecated": func(e map[string]any) { e["actor"].(map[string]any)["invoked_by"] = "x" },
		"array":      func(e map[string]any) { e["resources"] = map[string]any{} },
		"email":      func(e map[string]any) { e["actor"].(map[string]any)["user"].(map[string]any)["email_addr"] = "x y" },
		"class":      func(e map[string]any) { e["class_uid"] = 6099.0 },
		"version":    func(e map[string]any) { e["metadata"].(map[string]any)["version"] = "1.7.0" },
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range golden.Records() {
				if n.Name != "http-ok" {
					continue
				}
				e := reread(t, ocsf.Events(&n.Record))[0]
				if wrong := s.check(t, e); len(wrong) > 0 {
					t.Fatal(wrong)
				}
				change(e)
				if wrong := s.check(t, e); len(wrong) == 0 {
					t.Error("nothing found")
				}
			}
		})
	}
}

// FuzzEvents holds the events of records that say odd things to the schema.
func FuzzEvents(f *testing.F) {
	s := loadSchema(f)
	f.Add("http", "GET", "/x", "ok", "credential.minted", uint16(1))
	f.Add("grpc", "", "", "", "", uint16(7))
	f.Add("http", "", "", "", "relay.ended", uint16(0xf))
	f.Add("sql", "\x00", "\xff", "unknown", "task.opened", uint16(0xffff))
	f.Add("ssh", "login", "a@b.c", "denied", "policy.changed", uint16(0x5555))
	f.Fuzz(func(t *testing.T, protocol, a, b, outcome, event string, mask uint16) {
		r := audit.Record{ID: a, Request: &audit.Request{Protocol: protocol, Method: a, Path: b, Host: b, Port: int(mask) * 3, Address: b}, Result: &audit.Result{Outcome: outcome, Status: int(mask % 700)}}
		on := func(bit int) bool { return mask>>bit&1 == 1 }
		if on(0) {
			r.Human = &audit.Human{Subject: a, Email: b}
		}
		if on(1) {
			r.Workload = &audit.Workload{ID: b, RunID: a}
		}
		if on(2) {
			r.Credential = &audit.Use{Handle: a, Kind: b, AWS: &audit.AWSUse{Operation: a, Resources: []string{a, b}}}
		}
		if on(3) {
			r.Event = &audit.Event{Name: event, Fields: map[string]string{a: b, "destination": a, "workload": b, "by": a, "subject": b, "name": b, "query": a, "policy": b, "handle": b, "expires": a, "ttl_s": b}}
		}
		if on(4) {
			r.Change = &audit.Change{Kind: a, Name: b, Operation: b, By: &audit.Principal{Username: a, Groups: []string{b}}}
		}
		if on(5) {
			r.SQL = &audit.SQL{Engine: a, Operation: b, Statement: a, Tables: []string{b}, Code: a}
		}
		if on(6) {
			r.SSH = &audit.SSH{Operation: a, Command: b, ExitStatus: b}
		}
		if on(7) {
			r.Decision = &audit.Decision{Verdict: a, Policy: b, Rule: a, Reason: b, Code: b}
		}
		if on(8) {
			r.Type = audit.TypeHeartbeat
		}
		if on(9) {
			r.Process = &audit.Process{PID: int(mask), Exe: a, Digest: "sha256:" + b}
		}
		line, err := ocsf.AppendJSON(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		for l := range bytes.Lines(line) {
			var e map[string]any
			if err := json.Unmarshal(l, &e); err != nil {
				t.Fatal(err)
			}
			for _, wrong := range s.check(t, e) {
				t.Error(wrong)
			}
		}
	})
}

// TestSchemaFilesAreComplete fails when a file of the published schema is there
// that nothing reads.
func TestSchemaHasItsLicence(t *testing.T) {
	b, err := os.ReadFile("testdata/schema/LICENSE")
	if err != nil || !bytes.Contains(b, []byte("Apache License")) {
		t.Fatalf("the schema's licence: %v", err)
	}
}

// TestEventsAreDocumented holds docs/audit-events.md to the events and to their
// classes.
func TestEventsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/audit-events.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if cells := strings.Split(line, " | "); len(cells) == 5 && strings.HasPrefix(line, "| `") {
			rows[strings.Trim(cells[0], "| `")] = cells[4]
		}
	}
	for _, n := range golden.Records() {
		if n.Record.Type != audit.TypeEvent {
			continue
		}
		row, ok := rows[n.Record.Event.Name]
		if !ok {
			t.Errorf("docs/audit-events.md has no %s", n.Record.Event.Name)
			continue
		}
		for _, e := range ocsf.Events(&n.Record) {
			if want := fmt.Sprintf("%v/%v", e["class_uid"], e["activity_id"]); !strings.Contains(row, want) {
				t.Errorf("docs/audit-events.md says of %s %q, want %s", n.Record.Event.Name, row, want)
			}
		}
	}
}
