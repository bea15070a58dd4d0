package ui

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/net/html"

	"github.com/attache-dev/attache/audit"
)

// hostile strings end whatever they stand in and begin something of their own,
// or turn round what a person reads.
func hostile() []string {
	return []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `javascript:alert(1)`, `</title><svg onload=alert(1)>`, `{{.}}${1}<%=1%>`,
		"x\u202eexe.gpj\u2066\u2069", "a\u200b\u200d\ufeffb", "x\x1b[2Jy\x00z", "line\ndata: evil\nid: 1\r\nevent: row", "]]><!--", `=cmd|'/c calc'!A1`, `+1+1`, `@SUM(A1)`, `-2+3`, "\t=1", `&lt;b&gt;&#x3c;i&#x3e;`, `\u003cscript\u003e`,
	}
}

// soak fills every string of a record with s; what must stay, stays.
func soak(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		soak(v.Elem(), s)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			soak(v.Field(i), s)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		soak(v.Index(0), s)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		x := reflect.New(v.Type().Elem()).Elem()
		soak(x, s)
		m.SetMapIndex(reflect.ValueOf(s).Convert(v.Type().Key()), x)
		v.Set(m)
	default:
	}
}

// hostileWorld has requests, denials and events of which every text is hostile.
func hostileWorld(t *testing.T) (*harness, []string) {
	t.Helper()
	c := newClock()
	db := newDB(t, c)
	var ids []string
	var l []audit.Record
	for i, s := range hostile() {
		for kind := range 3 {
			var r audit.Record
			soak(reflect.ValueOf(&r).Elem(), s)
			r.ID, r.Type, r.Time = fmt.Sprintf("rec_%02x%x", i, kind), audit.TypeEnd, c.t.Add(-time.Minute)
			r.BeginEpoch, r.BeginSequence = "", 0
			r.Steps = &audit.Steps{Attested: 1, Decided: 2, Minted: 3, Injected: 4, FirstByte: 5, Ended: 6}
			switch kind {
			case 0:
				r.Event, r.Change, r.SQL, r.SSH = nil, nil, nil, nil
				r.Decision.Verdict, r.Result.Outcome = "inject", audit.OutcomeOK
			case 1:
				r.Event, r.Change, r.SQL = nil, nil, nil
				r.Decision.Verdict, r.Result.Outcome = "deny", audit.OutcomeDenied
			case 2:
				r.Type = audit.TypeEvent
			}
			ids = append(ids, r.ID)
			l = append(l, r)
		}
	}
	fill(t, db, l...)
	h := serve(t, db, c, func(_ *harness, conf *Config) {
		conf.Policies = Policies{
			Explain: func(_ context.Context, r *audit.Record) (string, error) { return r.Request.Path, nil },
			Patch:   func(_ context.Context, r *audit.Record) (string, error) { return r.Request.Path, nil },
			Reach: func(_ context.Context, w *audit.Workload) ([]Reach, error) {
				return []Reach{{w.ID, w.ID, w.ID, []string{w.ID}, []string{w.ID}, []string{w.ID}, w.ID}}, nil
			},
		}
	})
	h.login()
	return h, ids
}

// Whatever stands in records, a page has the elements and attributes of its
// templates only, no address that runs, and no character that is not seen.
func TestHostileRecords(t *testing.T) {
	h, ids := hostileWorld(t)
	paths := []string{"/", "/search?q=type:request,event", "/search?q=type:event", "/live", "/denied", "/producers"}
	for _, id := range ids {
		paths = append(paths, "/record/"+id)
	}
	for i, s := range hostile() {
		q := url.QueryEscape(s)
		paths = append(paths, "/agent?id="+q, "/human?id="+q, "/credential/"+url.PathEscape(s), "/task/"+url.PathEscape(s), "/policy/"+url.PathEscape(s), "/document?kind="+q+"&name="+q+"&namespace="+q,
			"/search?q="+q, "/live?q="+q, fmt.Sprintf("/denied?id=rec_%02x1", i), "/revoke?credential="+q, "/revoke?task="+q, "/"+url.PathEscape(s), "/login?to="+q, "/?p="+q, "/export?format="+q)
	}
	texts := 0
	for _, path := range paths {
		h.clock.advance(2 * time.Second) // the rate limit
		if h.clock.t.Sub(newClock().t) > 25*time.Minute {
			h.as(Person{Subject: "ada"})
			h.clock.t = newClock().t
		}
		status, body, header := h.get(path)
		if status >= http.StatusInternalServerError {
			t.Errorf("%s: %d %s", path, status, textOf(body))
		}
		if !strings.HasPrefix(header.Get("Content-Type"), "text/html") {
			if strings.Contains(body, "<") {
				t.Errorf("%s: %s", path, body)
			}
			continue
		}
		if strings.Contains(body, "alert(1)") {
			texts++
		}
		checkPage(t, path, body)
	}
	if texts < 50 {
		t.Errorf("only %d pages show a hostile text: the check is blind", texts)
	}
}

// known are the elements and attributes that templates have.
func known() (elements, attributes map[string]bool) {
	set := func(s string) map[string]bool {
		m := map[string]bool{}
		for x := range strings.FieldsSeq(s) {
			m[x] = true
		}
		return m
	}
	return set("html head meta title link script body a header div span nav ul li form input button main footer h1 h2 h3 p label details summary code pre section table caption thead tbody tr th td svg rect line time strong b br ol dl dt dd noscript figure"),
		set("lang charset name content rel href src defer class id aria-label aria-current aria-labelledby aria-hidden aria-pressed role method action type value placeholder autocomplete spellcheck maxlength data-focus tabindex scope title viewbox preserveaspectratio x y x1 x2 y1 y2 width height datetime for hidden data-events data-state data-copy open download colspan size viewport")
}

func checkPage(t *testing.T, path, body string) {
	t.Helper()
	elements, attributes := known()
	for _, r := range body {
		if r != '\n' && r != '\t' && r != '\u00a0' && !unicode.IsPrint(r) {
			t.Errorf("%s: the page has %U", path, r)
			break
		}
	}
	z := html.NewTokenizer(strings.NewReader(body))
	for {
		switch z.Next() {
		case html.ErrorToken:
			return
		case html.CommentToken:
			t.Errorf("%s: a comment %q", path, z.Raw())
		case html.StartTagToken, html.SelfClosingTagToken:
			tok := z.Token()
			if !elements[tok.Data] {
				t.Errorf("%s: an element <%s>", path, tok.Data)
			}
			for _, a := range tok.Attr {
				if !attributes[a.Key] {
					t.Errorf("%s: an attribute %s of <%s>", path, a.Key, tok.Data)
				}
				if (a.Key == "href" || a.Key == "src" || a.Key == "action") && (!strings.HasPrefix(a.Val, "/") || strings.HasPrefix(a.Val, "//")) && !strings.HasPrefix(a.Val, "#") {
					t.Errorf("%s: leads to %q", path, a.Val)
				}
			}
			if tok.Data == "script" {
				if next := z.Next(); next == html.TextToken && strings.TrimSpace(string(z.Raw())) != "" {
					t.Errorf("%s: a script in the page: %q", path, z.Raw())
				}
			}
		}
	}
}

// No record ends an event of the stream and begins another.
func TestHostileStream(t *testing.T) {
	h, _ := hostileWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.srv.URL+linkIn(t, h.page200("/live?q=type:request,event"), `data-events="`), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	evil := sample("rec_ee", "a", h.clock.t)
	evil.Request.Path, evil.Credential = "/x\n\nevent: evil\ndata: <script>\r\rdata: y", nil
	fill(t, h.db, evil, sample("rec_ff", "a", h.clock.t))
	got, buf := "", make([]byte, 4096)
	for !strings.Contains(got, "rec_ff") {
		n, err := res.Body.Read(buf)
		got += string(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
	}
	if strings.Contains(got, "\nevent: evil") || strings.Contains(got, "<script>") || strings.Contains(got, "\r") {
		t.Errorf("got %s", got)
	}
}

// A cell of an export is never a formula, and says what the record says.
func TestExportCSV(t *testing.T) {
	h, ids := hostileWorld(t)
	status, body, header := h.get("/export?format=csv&q=type:request,event")
	if status != http.StatusOK || !strings.Contains(header.Get("Content-Disposition"), ".csv") || header.Get("Attache-Export") != fmt.Sprintf("whole; records=%d", len(ids)) {
		t.Fatalf("got %d %v", status, header)
	}
	rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(ids)+1 {
		t.Fatalf("%d rows, want %d", len(rows), len(ids)+1)
	}
	formulas := 0
	for _, row := range rows[1:] {
		for _, c := range row {
			if c != "" && strings.ContainsAny(c[:1], "=+-@\t\r|%") {
				t.Errorf("a formula: %q", c)
			}
			if strings.HasPrefix(c, "'=") {
				formulas++
			}
			for _, r := range c {
				if !unicode.IsPrint(r) {
					t.Errorf("%q has %U", c, r)
				}
			}
		}
	}
	if formulas == 0 {
		t.Error("no cell would have been a formula: the check is blind")
	}
	if l := h.named(audit.EventAuditExport); len(l) != 2 || l[1].Event.Fields["records"] != fmt.Sprint(len(ids)) || l[0].Event.Fields["query"] == "" {
		t.Errorf("events: %+v", l)
	}
}

func TestExportLines(t *testing.T) {
	h := world(t, nil)
	h.login()
	for _, kind := range []string{"json", "ocsf", "ecs"} {
		status, body, _ := h.get("/export?format=" + kind + "&q=type:request")
		if status != http.StatusOK {
			t.Fatalf("%s: %d", kind, status)
		}
		n := 0
		for line := range strings.Lines(body) {
			var v map[string]any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatalf("%s: %v in %s", kind, err, line)
			}
			if kind == "ocsf" && v["class_uid"] == nil || kind == "json" && v["schema"] == nil || kind == "ecs" && v["@timestamp"] == nil {
				t.Errorf("%s: %s", kind, line)
			}
			n++
		}
		if n != 8 {
			t.Errorf("%s: %d records", kind, n)
		}
	}
	if status, body, _ := h.get("/export?format=json&q=colour:red"); status != http.StatusBadRequest || !strings.Contains(body, "column 1") {
		t.Errorf("a mistake: %d %s", status, textOf(body))
	}
}

func FuzzVisible(f *testing.F) {
	for _, s := range hostile() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range string(visible(b)) {
			if r != '\n' && r != '\t' && r != '\u00a0' && !unicode.IsPrint(r) {
				t.Errorf("%q keeps %U", b, r)
			}
		}
	})
}

// A term made for a link finds what it was made from, and cannot become two.
func FuzzTerm(f *testing.F) {
	for _, s := range hostile() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		x := term("host", s)
		filter, err := audit.ParseFilter(x, time.Unix(0, 0))
		if err != nil {
			if len(x) > 4000 || s == "" || strings.ContainsRune(s, 0) {
				return
			}
			t.Fatalf("%q: %v", x, err)
		}
		if n := len(filter.Terms()); s != "" && n != 1 {
			t.Errorf("%q has %d terms", x, n)
		}
	})
}
