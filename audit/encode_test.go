package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// fill sets every field of v: strings by text, which gets the field's name.
func fill(v reflect.Value, text func(name string) string) {
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)))
		case []string:
			f.Set(reflect.ValueOf([]string{text(name), "b"}))
		case map[string]string:
			f.Set(reflect.ValueOf(map[string]string{"z": text(name), "a": "1", "m": ""}))
		case []Actor:
			f.Set(reflect.ValueOf([]Actor{{Subject: text(name), Issuer: text("Issuer")}, {Subject: "b"}}))
		default:
			switch f.Kind() {
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
				fill(f.Elem(), text)
			case reflect.String:
				f.SetString(text(name))
			case reflect.Bool:
				f.SetBool(true)
			case reflect.Int, reflect.Int64:
				f.SetInt(int64(-7 - i))
			default:
				f.SetUint(uint64(7 + i))
			}
		}
	}
}

func full(text func(string) string) Record {
	var r Record
	fill(reflect.ValueOf(&r).Elem(), text)
	return r
}

func plainJSON(t testing.TB, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// TestEncoderWritesWhatEncodingJSONWould fails when a field is added to Record
// and not to the encoder.
func TestEncoderWritesWhatEncodingJSONWould(t *testing.T) {
	empty := Record{
		Steps: &Steps{}, Workload: &Workload{}, Process: &Process{}, Human: &Human{}, Task: &Task{},
		Request: &Request{}, Decision: &Decision{}, Credential: &Use{}, Result: &Result{}, Event: &Event{},
		SQL: &SQL{}, SSH: &SSH{}, Change: &Change{By: &Principal{}}, Actors: []Actor{{}},
	}
	for name, r := range map[string]Record{
		"every field": full(func(n string) string { return n + ` <a href="x">&\ ünï日本` + "\n\r\t\b\f\x00" }),
		"zero":        {},
		"no field":    empty,
	} {
		t.Run(name, func(t *testing.T) {
			got := string(r.AppendJSON(nil))
			if diff := cmp.Diff(plainJSON(t, r), got); diff != "" {
				t.Errorf("encoding/json (-) and AppendJSON (+) differ:\n%s", diff)
			}
			back, err := decode([]byte(got))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r, back); diff != "" {
				t.Errorf("decode(encode(r)) differs from r:\n%s", diff)
			}
		})
	}
}

// TestEncoderKeepsBounds fails when a field's tag and its bound in the encoder
// differ, and when a value is not cut.
func TestEncoderKeepsBounds(t *testing.T) {
	long := full(func(string) string { return strings.Repeat("é", 40000) })
	var lists func(v reflect.Value)
	lists = func(v reflect.Value) {
		for i := range v.NumField() {
			switch f := v.Field(i); x := f.Interface().(type) {
			case []string:
				f.Set(reflect.ValueOf(strings.Split(strings.Repeat(x[0]+",", 99), ",")))
			case []Actor:
				f.Set(reflect.ValueOf(slices.Repeat(x, 9)))
			case map[string]string:
				m := map[string]string{}
				for k := range 99 {
					m[fmt.Sprintf("%03d", k)] = x["z"]
				}
				f.Set(reflect.ValueOf(m))
			default:
				if f.Kind() == reflect.Pointer {
					lists(f.Elem())
				}
			}
		}
	}
	lists(reflect.ValueOf(&long).Elem())
	var got any
	if err := json.Unmarshal(long.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	for _, f := range Fields() {
		v := got
		for part := range strings.SplitSeq(f.Path, ".") {
			if l, ok := v.([]any); ok { // a list of objects: its first
				v = l[0]
			}
			v = v.(map[string]any)[part]
		}
		check := func(s string) {
			if len(s) > f.Max || len(s) < f.Max-utf8.UTFMax || !strings.HasSuffix(s, ellipsis) || !utf8.ValidString(s) {
				t.Errorf("%s: %d bytes ending in %q; want cut to %d", f.Path, len(s), s[max(0, len(s)-9):], f.Max)
			}
		}
		switch f.Type {
		case "string":
			check(v.(string))
		case "objects":
			if l := v.([]any); len(l) != f.Items || l[len(l)-1].(map[string]any)["subject"] != ellipsis {
				t.Errorf("%s: %d items, want %d and the mark", f.Path, len(l), f.Items)
			}
		case "list":
			l := v.([]any)
			if len(l) != f.Items || l[len(l)-1] != ellipsis {
				t.Errorf("%s: %d items ending in %v, want %d and …", f.Path, len(l), l[len(l)-1], f.Items)
			}
			check(l[0].(string))
		case "map":
			m := v.(map[string]any)
			if _, marked := m[ellipsis]; len(m) != f.Items || !marked {
				t.Errorf("%s: %d items, want %d and the mark", f.Path, len(m), f.Items)
			}
			check(m["000"].(string))
		}
	}
	if n := len(long.AppendJSON(nil)); n >= maxLine {
		t.Errorf("longest line has %d bytes; readers take %d", n, maxLine)
	}
}

// TestLongestLine fails when a record whose every byte grows sixfold exceeds
// what readers take. A request has no change and no event.
func TestLongestLine(t *testing.T) {
	all := full(func(string) string { return strings.Repeat("\x00", 1<<17) })
	widen(reflect.ValueOf(&all).Elem())
	request, event := all, all
	request.Event, request.Change = nil, nil
	event.Request, event.SQL, event.SSH, event.Credential, event.Decision, event.Result = nil, nil, nil, nil, nil, nil
	for name, r := range map[string]Record{"request": request, "event": event} {
		if n := len(r.AppendJSON(nil)) + trailer; n >= maxLine {
			t.Errorf("longest %s has %d bytes; readers take %d", name, n, maxLine)
		}
	}
}

// widen fills every list and map of v beyond its bound.
func widen(v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); x := f.Interface().(type) {
		case []string:
			f.Set(reflect.ValueOf(slices.Repeat(x[:1], 99)))
		case []Actor:
			f.Set(reflect.ValueOf(slices.Repeat(x[:1], 9)))
		case map[string]string:
			m := map[string]string{}
			for k := range 99 {
				m[fmt.Sprintf("%03d", k)+x["z"]] = x["z"]
			}
			f.Set(reflect.ValueOf(m))
		default:
			if f.Kind() == reflect.Pointer {
				widen(f.Elem())
			}
		}
	}
}

// hostile holds what must not reach a terminal: an escape sequence, C1 control,
// DEL, right-to-left override, zero-width space, tag character, bad UTF-8.
const hostile = "\x1b[31m\u009b2J\x7f\u202egnp.exe\u200b\U000e0041\xff\u2028\r\nx"

func TestEncoderEscapes(t *testing.T) {
	r := full(func(string) string { return hostile })
	b := r.AppendJSON(nil)
	for i, c := range string(b) {
		if !unicode.IsPrint(c) {
			t.Fatalf("rune %U at %d is written raw", c, i)
		}
	}
	back, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ToValidUTF8(hostile, "\ufffd")
	if back.Request.UserAgent != want || back.Event.Fields["z"] != want || back.Unsafe[0] != want {
		t.Errorf("decoded %q, want %q", back.Request.UserAgent, want)
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("plain", int64(0), uint64(1))
	f.Add(hostile, int64(1<<62), uint64(1<<63))
	f.Add(`"\`+"\x00\xc3\x28\xed\xa0\x80", int64(-1), uint64(0))
	f.Fuzz(func(t *testing.T, s string, n int64, u uint64) {
		if len(s) > maxWord-1 { // longer ones are cut, which has its own test
			s = s[:maxWord-1]
		}
		r := full(func(name string) string { return s + name[:1] })
		r.Sequence, r.Steps.Ended = u, n
		r.Time = time.Unix(n%1e10, 5).UTC()
		b := r.AppendJSON(nil)
		if bytes.ContainsAny(b, "\n\t") {
			t.Fatal("raw newline or tab")
		}
		var got, want Record
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v in %q", err, b)
		}
		if y := r.Time.Year(); y < 0 || y > 9999 {
			r.Time = time.Time{}
		}
		if err := json.Unmarshal([]byte(plainJSON(t, r)), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		h, ok := fastHead(b)
		if ok && (h.Sequence != u || h.ID != got.ID || h.Type != got.Type || h.BeginEpoch != got.BeginEpoch) {
			t.Fatalf("head %+v of %s", h, b)
		}
		line := appendTrailer(b, 0)
		if _, err := unframe(line); err != nil {
			t.Fatal(err)
		}
		line[int(u%uint64(len(line)-1))] ^= 1
		if _, err := unframe(line); err == nil {
			t.Fatal("an altered line is taken for whole")
		}
	})
}

func TestEveryFieldSaysItsTrust(t *testing.T) {
	for _, f := range Fields() {
		if f.Trust == "" {
			t.Errorf("%s has no trust tag", f.Path)
		}
		if (f.Type == "string" || f.Type == "list" || f.Type == "map") && f.Max == 0 {
			t.Errorf("%s has no max tag", f.Path)
		}
		if (f.Type == "list" || f.Type == "map" || f.Type == "objects") && f.Items == 0 {
			t.Errorf("%s has no items tag", f.Path)
		}
	}
	for path, want := range map[string]string{
		"task.purpose": Claimed, "request.user_agent": Claimed, "request.trace_id": Claimed,
		"result.upstream_request_id": Claimed, "workload.id": Verified, "decision.verdict": Derived,
	} {
		if got := FieldTrust()[path]; got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// TestDocs fails when docs/audit.md lacks a field or tells it otherwise than
// the code.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.SplitSeq(string(doc), "\n") {
		if cells := strings.Split(line, " | "); len(cells) >= 4 && strings.HasPrefix(line, "| `") {
			rows[strings.Trim(cells[0], "| `")] = cells
		}
	}
	for _, f := range Fields() {
		typ := f.Type
		switch {
		case f.Type == "objects":
			typ = fmt.Sprintf("objects, %d", f.Items)
		case f.Items > 0:
			typ = fmt.Sprintf("%s, %d × %d B", f.Type, f.Items, f.Max)
		case f.Max > 0:
			typ = fmt.Sprintf("%s, %d B", f.Type, f.Max)
		}
		row := rows[f.Path]
		if row == nil {
			t.Errorf("docs/audit.md does not tell field %s", f.Path)
		} else if row[1] != typ || row[2] != f.Trust || len(row[3]) < 3 {
			t.Errorf("docs/audit.md says of %s %q, %q, %q; want %q, %q and a meaning", f.Path, row[1], row[2], row[3], typ, f.Trust)
		}
	}
	_, example, _ := strings.Cut(string(doc), "```json\n")
	example, _, _ = strings.Cut(example, "\n```")
	d := json.NewDecoder(strings.NewReader(example))
	d.DisallowUnknownFields()
	var r Record
	if err := d.Decode(&r); err != nil {
		t.Errorf("example: %v", err)
	}
	if got := string(r.AppendJSON(nil)); got != example {
		t.Errorf("example is not as we write it:\n%s", cmp.Diff(example, got))
	}
	for _, k := range FilterKeys() {
		if !strings.Contains(string(doc), "`"+k+"`") {
			t.Errorf("docs/audit.md does not name the key %s", k)
		}
	}
}

// TestSchema fails when schema.json is stale; UPDATE=1 rewrites it.
func TestSchema(t *testing.T) {
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("schema.json", Schema(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(Schema()), string(b)); diff != "" {
		t.Errorf("schema.json is stale; run UPDATE=1 go test -run TestSchema ./audit\n%s", diff)
	}
}
