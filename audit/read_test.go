package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
)

// lines splits the only segment of dir.
func lines(t testing.TB, dir string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	l := bytes.SplitAfter(b, []byte("\n"))
	return l[:len(l)-1]
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	s := mustOpen(t, Options{})
	for range 5 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good := lines(t, s.opts.Dir) // open, 5 × (begin, end), close
	orphan := append([]byte(nil), good[2][:len(good[2])-trailer]...)
	orphan = appendTrailer(bytes.Replace(orphan, []byte(`"begin_sequence":2`), []byte(`"begin_sequence":1`), 1), 0)
	strange := appendTrailer([]byte(`{"type":"begin","epoch":""}`), 0)
	for _, tc := range []struct {
		name string
		edit func(l [][]byte) [][]byte
		want []string
	}{
		{"nothing", func(l [][]byte) [][]byte { return l }, nil},
		{"a request is taken out", func(l [][]byte) [][]byte { return append(l[:3:3], l[5:]...) }, []string{ProblemGap}},
		{"a begin is taken out", func(l [][]byte) [][]byte { return append(l[:1:1], l[2:]...) }, []string{ProblemGap, ProblemOrphan}},
		{"the head is taken out", func(l [][]byte) [][]byte { return l[1:] }, []string{ProblemGap}},
		{"a request is repeated", func(l [][]byte) [][]byte { return append(append(l[:3:3], l[1:3]...), l[3:]...) }, []string{ProblemDuplicate, ProblemDuplicate}},
		{"lines are swapped", func(l [][]byte) [][]byte { l[3], l[5] = l[5], l[3]; return l }, []string{ProblemDuplicate, ProblemDuplicate, ProblemGap}},
		{"a byte is altered", func(l [][]byte) [][]byte {
			l[5] = bytes.Replace(l[5], []byte("GET"), []byte("PUT"), 1)
			return l
		}, []string{ProblemCorrupt, ProblemGap, ProblemOrphan}},
		{"the checksum is altered", func(l [][]byte) [][]byte { l[6] = append(l[6][:len(l[6])-2:len(l[6])-2], 'x', '\n'); return l }, []string{ProblemCorrupt, ProblemGap, ProblemOpen}},
		{"an end names another begin", func(l [][]byte) [][]byte { l[2] = orphan; return l }, []string{ProblemChain, ProblemChain, ProblemOrphan, ProblemOpen}},
		{"the tail is torn", func(l [][]byte) [][]byte { l[11] = l[11][:30]; return l }, []string{ProblemTruncated}},
		{"the last end is gone", func(l [][]byte) [][]byte { return l[:10] }, []string{ProblemOpen}},
		{"no record", func(l [][]byte) [][]byte { return append(l, strange) }, []string{ProblemCorrupt}},
		{"zeros after power loss", func(l [][]byte) [][]byte { return append(l, make([]byte, 4096)) }, []string{ProblemTruncated}},
		{"a line without end", func(l [][]byte) [][]byte { return append(l, bytes.Repeat([]byte("x"), maxLine+9), []byte("\n")) }, []string{ProblemCorrupt, ProblemCorrupt}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l := make([][]byte, len(good))
			for i := range good {
				l[i] = bytes.Clone(good[i])
			}
			if err := os.WriteFile(filepath.Join(dir, segmentName(1)), bytes.Join(tc.edit(l), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			rep := mustVerify(t, dir)
			var got []string
			for _, p := range rep.Problems {
				got = append(got, p.Kind)
			}
			want, have := map[string]int{}, map[string]int{}
			for _, k := range tc.want {
				want[k]++
			}
			for _, k := range got {
				have[k]++
			}
			if len(want) != len(have) || rep.OK() != (len(tc.want) == 0) {
				t.Fatalf("problems %v, want %v\n%s", got, tc.want, rep.String())
			}
			for k, n := range want {
				if have[k] < n {
					t.Errorf("problems %v, want %v\n%s", got, tc.want, rep.String())
				}
			}
			damaged := have[ProblemCorrupt]+have[ProblemDuplicate] > 0
			if err := Read(dir, Filter{}, func(Record) bool { return true }); errors.Is(err, ErrDamaged) != damaged {
				t.Errorf("Read: %v, want ErrDamaged %v", err, damaged)
			}
		})
	}
}

func TestMissingSegmentIsFound(t *testing.T) {
	s := mustOpen(t, Options{SegmentBytes: 8 << 10})
	for range 60 {
		tk, _ := mustBegin(t, s)
		mustEnd(t, tk)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{1, 3} {
		dir := snapshot(t, s.opts.Dir)
		if err := os.Remove(filepath.Join(dir, segmentName(n))); err != nil {
			t.Fatal(err)
		}
		if rep := mustVerify(t, dir); rep.OK() || !strings.Contains(rep.String(), "missing") {
			t.Errorf("segment %d gone: %s", n, rep.String())
		}
	}
}

func TestTailFollowsRotation(t *testing.T) {
	s := mustOpen(t, Options{SegmentBytes: 8 << 10})
	early, first := mustBegin(t, s)
	for range 3 {
		if err := s.Deny(sample()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan Record, 100)
	done := make(chan error, 1)
	go func() {
		done <- Tail(ctx, s.opts.Dir, mustFilter(t, "type:request"), 2, func(r Record) bool { got <- r; return true })
	}()
	for range 2 { // of the three that were there
		if r := <-got; r.Result.Outcome != OutcomeDenied {
			t.Errorf("past record %s", r.Result.Outcome)
		}
	}
	want := map[string]bool{first.ID: true}
	for range 40 {
		tk, r := mustBegin(t, s)
		mustEnd(t, tk)
		want[r.ID] = true
	}
	mustEnd(t, early) // its begin was before the tail, and segments ago
	for len(want) > 0 {
		select {
		case r := <-got:
			if !want[r.ID] || r.Result == nil || r.Request == nil {
				t.Fatalf("unexpected %s", r.AppendJSON(nil))
			}
			delete(want, r.ID)
		case <-ctx.Done():
			t.Fatalf("%d records did not come", len(want))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Tail: %v", err)
	}
	if err := Tail(t.Context(), s.opts.Dir, Filter{}, 5, func(Record) bool { return false }); err != nil {
		t.Errorf("Tail stopped by fn: %v", err)
	}
	if err := Tail(t.Context(), filepath.Join(s.opts.Dir, "none"), Filter{}, 0, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Tail without directory: %v", err)
	}
}

func TestFilter(t *testing.T) {
	now := time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)
	r := sample()
	r.Type, r.ID, r.Time = TypeEnd, "rec_1", now.Add(-time.Hour)
	r.Result = &Result{Outcome: OutcomeError, Status: 404, ErrorKind: "upstream_timeout"}
	r.Credential = &Use{Handle: "cred_9", Provider: "invoices", Kind: "bearer", ScopeGranted: []string{"invoices:read"}}
	ev := &Record{Type: TypeEvent, Time: now, Event: &Event{Name: "credential.revoked", Fields: map[string]string{"handle": "cred_9"}}}
	beat := &Record{Type: TypeHeartbeat, Time: now, Event: &Event{Name: TypeHeartbeat}}
	for _, tc := range []struct {
		query           string
		req, event, hbt bool
	}{
		{"", true, true, false},
		{"owner:ADA@example.com", true, false, false},
		{"owner:ada", false, false, false},
		{"owner:ada*", true, false, false},
		{"host:*.example.com", true, false, false},
		{"host:*.example.org", false, false, false},
		{"host:a*i.ex*com", true, false, false},
		{"method:PUT,get", true, false, false},
		{"method:PUT,POST", false, false, false},
		{"-method:GET", false, true, false},
		{"status:4xx", true, false, false},
		{"status:5xx,404", true, false, false},
		{"status:40", false, false, false},
		{"verdict:inject rule:read-invoices", true, false, false},
		{"verdict:inject rule:other", false, false, false},
		{`purpose:"close the books"`, true, false, false},
		{`"close the"`, true, false, false},
		{"books python3.12", true, false, false},
		{"-books", false, true, false},
		{"handle:cred_9", true, true, false},
		{"scope:invoices:read", true, false, false},
		{"error:*timeout outcome:error", true, false, false},
		{"label:team=payments", true, false, false},
		{"since:30m", false, true, false},
		{"since:90m until:30m", true, false, false},
		{"since:7d", true, true, false},
		{"since:2026-03-08", true, true, false},
		{"until:2026-03-08T11:30:00Z", true, false, false},
		{"type:event", false, true, false},
		{"type:all", true, true, true},
		{"type:heartbeat,event", false, true, true},
		{"human:ada task:t_0123 provider:invoices kind:bearer policy:local/* workload:*demo exe:*python*", true, false, false},
	} {
		f, err := ParseFilter(tc.query, now)
		if err != nil {
			t.Errorf("%s: %v", tc.query, err)
			continue
		}
		if a, b, c := f.Match(r), f.Match(ev), f.Match(beat); a != tc.req || b != tc.event || c != tc.hbt {
			t.Errorf("%q matches request %v, event %v, heartbeat %v; want %v, %v, %v", tc.query, a, b, c, tc.req, tc.event, tc.hbt)
		}
	}
}

func TestFilterErrors(t *testing.T) {
	for query, want := range map[string]struct {
		at   int
		text string
	}{
		"hots:x":                      {0, `"hots" is no key; use one of actor, agent`},
		"method:GET  -hots:x":         {13, "no key"},
		"host:":                       {5, "a value is missing"},
		"host:a,,b":                   {7, "a value is missing"},
		"host: a":                     {5, "a value is missing"},
		`purpose:"x`:                  {8, "not closed"},
		`"a"b`:                        {3, "space is missing"},
		"since:soon":                  {0, "is no time; write 90m"},
		"since:-5m":                   {0, "is no time"},
		"-since:5m":                   {0, "takes one time"},
		strings.Repeat("a ", 65):      {128, "more than 64 terms"},
		strings.Repeat("a", 5000):     {4096, "longer than"},
		"host:x since:99999999999999": {7, "is no time"},
	} {
		_, err := ParseFilter(query, time.Now())
		var qe *QueryError
		if !errors.As(err, &qe) || qe.Offset != want.at || !strings.Contains(qe.Text, want.text) {
			t.Errorf("%.40q: %v, want column %d and %q", query, err, want.at+1, want.text)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"", "host:*.x status:4xx", `-a:"b c",d`, "since:24h until:2026-01-01", `"`, "::", "-", "host:****a*b*"} {
		f.Add(s)
	}
	r := full(func(n string) string { return n })
	f.Fuzz(func(t *testing.T, q string) {
		flt, err := ParseFilter(q, time.Unix(0, 0))
		var qe *QueryError
		if err != nil && (!errors.As(err, &qe) || qe.Offset < 0 || qe.Offset > len(q)) {
			t.Fatalf("%v", err)
		}
		flt.Match(&r)
	})
}

// FuzzSegment reads whatever may stand in a segment, and recovers from it.
func FuzzSegment(f *testing.F) {
	s := mustOpen(f, Options{})
	tk, err := s.Begin(context.Background(), sample())
	if err != nil {
		f.Fatal(err)
	}
	if err := tk.End(ok200(), nil, nil, nil); err != nil {
		f.Fatal(err)
	}
	whole := bytes.Join(lines(f, s.opts.Dir), nil)
	f.Add(whole, true)
	f.Add(whole[:len(whole)-20], true)
	f.Add(whole[:len(whole)-20], false)
	f.Add([]byte("{}\t00000000\n\n\t\n"), true)
	f.Add([]byte(`{"type":"event","epoch":"e","sequence":1,"event":{"name":"spool.dropped","fields":{"missing":"1-9223372036854775807"}}}`), false)
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		if !raw { // framed as ours, so that the JSON is looked at
			b = bytes.ReplaceAll(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"), nil)
			b = appendTrailer(b, 0)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segmentName(1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(dir); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		p := NewPrinter(&out, PrinterOptions{})
		err := Read(dir, mustFilter(t, "type:all"), func(r Record) bool { return p.Print(r) == nil && p.Show(r) == nil })
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		for _, c := range out.String() {
			if c != '\n' && !unicode.IsPrint(c) {
				t.Fatalf("%U reaches the terminal", c)
			}
		}
		s, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPrinter(t *testing.T) {
	r := sample()
	r.Type, r.ID, r.Time, r.BeginSequence = TypeEnd, "rec_1", time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), 2
	r.Steps = &Steps{Attested: 180, Decided: 240, Begun: 260, Minted: 310, Injected: 320, FirstByte: 24100, Ended: 25300}
	r.Credential = &Use{Handle: "cred_9", Provider: "invoices", Kind: "bearer", ScopeGranted: []string{"invoices:read"}, TTLSeconds: 300, Cached: true}
	r.Result = ok200()
	var b bytes.Buffer
	if err := NewPrinter(&b, PrinterOptions{}).Print(*r); err != nil {
		t.Fatal(err)
	}
	want := "12:00:00.000  ok        inject       demo/python3.12[4242]  for ada@example.com  " +
		"GET api.example.com/v1/invoices/42?page  rule local/quickstart/read-invoices  " +
		"cred_9 [invoices:read] ttl 5m0s cached  200 25.3ms  rec_1\n"
	if b.String() != want {
		t.Errorf("got  %swant %s", b.String(), want)
	}
	b.Reset()
	if err := NewPrinter(&b, PrinterOptions{}).Show(*r); err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, word := range []string{
		"asked", "attested", "in 180µs when the connection was accepted", "decided", "inject by local/quickstart/read-invoices", "12:00:00.000260  begun", "minted", "by invoices",
		"used", "12:00:00.024100  answered", "ended", "workload.id", "verified", "task.purpose", "claimed", "close the books",
		"request.path_template", "derived", "credential.handle",
	} {
		i := strings.Index(b.String()[at:], word)
		if i < 0 {
			t.Fatalf("%q is not told in its place:\n%s", word, b.String())
		}
		at += i
	}
	b.Reset()
	if err := NewPrinter(&b, PrinterOptions{JSON: true, Color: true}).Print(*r); err != nil {
		t.Fatal(err)
	}
	var back Record
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back.ID != "rec_1" || bytes.Contains(b.Bytes(), []byte("\x1b")) {
		t.Errorf("JSON: %v %s", err, b.String())
	}
}

// A refused call tells what it asked for, and that it had no credential.
func TestPrinterOfRefusals(t *testing.T) {
	r := Record{Type: TypeEnd, ID: "rec_1", Time: time.Unix(0, 0).UTC(), Steps: &Steps{Minted: 20},
		Credential: &Use{Provider: "aws", Kind: "aws-session", AWS: &AWSUse{Service: "s3", Operation: "GetObject", Resources: []string{"arn:aws:s3:::b/k"}, Scope: "request"}},
		Result:     &Result{Outcome: OutcomeError}}
	var b strings.Builder
	p := NewPrinter(&b, PrinterOptions{})
	if err := errors.Join(p.Print(r), p.Show(r)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"asked s3:GetObject [arn:aws:s3:::b/k]", "minted    no credential"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, b.String())
		}
	}
	for _, not := range []string{"used", "credential.handle"} {
		if strings.Contains(b.String(), not) {
			t.Errorf("has %q:\n%s", not, b.String())
		}
	}
}

func TestPrinterIsSafeForTerminals(t *testing.T) {
	r := full(func(string) string { return hostile })
	req := r
	req.Event = nil
	for _, x := range []Record{r, req, {}} {
		for _, color := range []bool{false, true} {
			var b bytes.Buffer
			p := NewPrinter(&b, PrinterOptions{Color: color})
			if err := errors.Join(p.Print(x), p.Show(x)); err != nil {
				t.Fatal(err)
			}
			s := b.String()
			for _, code := range []string{reset, bold, dim, red, green, yellow, blue} {
				if color {
					s = strings.ReplaceAll(s, code, "")
				}
			}
			if x.ID != "" && strings.Contains(s, "gnp.exe") && !strings.Contains(s, `\u001b[31m\u009b2J`) {
				t.Errorf("hostile text is not told: %q", s)
			}
			for _, c := range s {
				if c != '\n' && !unicode.IsPrint(c) {
					t.Fatalf("%U reaches the terminal (colour %v)", c, color)
				}
			}
		}
	}
	rep := Report{Problems: []Problem{{Kind: "x", Text: hostile}}}
	if strings.Contains(rep.String(), "\x1b") {
		t.Error("a report passes an escape sequence on")
	}
	if WantColor(&bytes.Buffer{}, func(string) string { return "" }) {
		t.Error("colour into a buffer")
	}
}
