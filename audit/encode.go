package audit

import (
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// ellipsis ends every value that was cut to its bound.
const ellipsis = "…"

// AppendJSON appends r as one line of JSON, without a newline, and returns the
// extended slice. It writes what encoding/json would, except that HTML is not
// escaped, that strings, lists and maps are cut to their bounds, and that every
// rune which is not printable (controls, bidirectional and zero-width marks) is
// escaped as \uXXXX, so that a spool can be shown on a terminal as it is. It
// exists because the begin of each request is on its path, and because
// reflection costs several times more.
func (r *Record) AppendJSON(b []byte) []byte { return r.appendBody(r.appendHead(b)) }

// appendHead appends the part that is only known under the spool's lock. Its
// fields stand first in every line, so that recovery can read them without
// parsing JSON.
func (r *Record) appendHead(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"schema":`, r.Schema, maxWord)
	b = appendStr(b, `,"type":`, r.Type, maxWord)
	b = appendStr(b, `,"id":`, r.ID, maxWord)
	b = appendStr(b, `,"epoch":`, r.Epoch, maxWord)
	b = append(b, `,"sequence":`...)
	b = strconv.AppendUint(b, r.Sequence, 10)
	b = optStr(b, `,"begin_epoch":`, r.BeginEpoch, maxWord)
	if r.BeginSequence != 0 {
		b = append(b, `,"begin_sequence":`...)
		b = strconv.AppendUint(b, r.BeginSequence, 10)
	}
	b[n] = '{'
	return b
}

// appendBody appends everything from "time" on, and the closing brace.
func (r *Record) appendBody(b []byte) []byte {
	b = appendTime(b, `,"time":`, r.Time)
	if r.Steps != nil {
		b = r.Steps.append(append(b, `,"steps":`...))
	}
	if r.Workload != nil {
		b = r.Workload.append(append(b, `,"workload":`...))
	}
	if r.Process != nil {
		b = r.Process.append(append(b, `,"process":`...))
	}
	b = optStr(b, `,"owner":`, r.Owner, maxName)
	b = optStr(b, `,"owner_source":`, r.OwnerSource, maxWord)
	if r.Human != nil {
		b = r.Human.append(append(b, `,"human":`...))
	}
	b = appendActors(b, r.Actors)
	if r.Task != nil {
		b = r.Task.append(append(b, `,"task":`...))
	}
	if r.Request != nil {
		b = r.Request.append(append(b, `,"request":`...))
	}
	if r.SQL != nil {
		b = r.SQL.append(append(b, `,"sql":`...))
	}
	if r.SSH != nil {
		b = r.SSH.append(append(b, `,"ssh":`...))
	}
	if r.Decision != nil {
		b = r.Decision.append(append(b, `,"decision":`...))
	}
	if r.Credential != nil {
		b = r.Credential.append(append(b, `,"credential":`...))
	}
	if r.Result != nil {
		b = r.Result.append(append(b, `,"result":`...))
	}
	if r.Event != nil {
		b = r.Event.append(append(b, `,"event":`...))
	}
	if r.Change != nil {
		b = r.Change.append(append(b, `,"change":`...))
	}
	b = optList(b, `,"unsafe":`, r.Unsafe, maxWord, maxFew)
	b = optBool(b, `,"truncated":`, r.Truncated)
	return append(b, '}')
}

func (s *Steps) append(b []byte) []byte {
	n := len(b)
	b = optInt(b, `,"attested_us":`, s.Attested)
	b = optInt(b, `,"decided_us":`, s.Decided)
	b = optInt(b, `,"begun_us":`, s.Begun)
	b = optInt(b, `,"minted_us":`, s.Minted)
	b = optInt(b, `,"injected_us":`, s.Injected)
	b = optInt(b, `,"first_byte_us":`, s.FirstByte)
	b = optInt(b, `,"ended_us":`, s.Ended)
	return closeObject(b, n)
}

func (w *Workload) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"id":`, w.ID, maxURI)
	b = optStr(b, `,"namespace":`, w.Namespace, maxName)
	b = optStr(b, `,"service_account":`, w.ServiceAccount, maxName)
	b = optMap(b, `,"labels":`, w.Labels, maxName, maxMany)
	b = optStr(b, `,"node":`, w.Node, maxName)
	b = optStr(b, `,"posture_digest":`, w.PostureDigest, maxDigest)
	b = optStr(b, `,"run_id":`, w.RunID, maxWord)
	return closeObject(b, n)
}

func (p *Process) append(b []byte) []byte {
	n := len(b)
	b = optInt(b, `,"pid":`, int64(p.PID))
	b = append(b, `,"uid":`...)
	b = strconv.AppendUint(b, uint64(p.UID), 10)
	b = optStr(b, `,"exe":`, p.Exe, maxText)
	b = optStr(b, `,"digest":`, p.Digest, maxDigest)
	b = optBool(b, `,"shared":`, p.Shared)
	return closeObject(b, n)
}

func (h *Human) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"subject":`, h.Subject, maxName)
	b = appendStr(b, `,"issuer":`, h.Issuer, maxText)
	b = optStr(b, `,"email":`, h.Email, maxEmail)
	return closeObject(b, n)
}

func (t *Task) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"id":`, t.ID, maxWord)
	b = optStr(b, `,"purpose":`, t.Purpose, maxText)
	b = optStr(b, `,"opened_by":`, t.OpenedBy, maxWord)
	return closeObject(b, n)
}

func (q *Request) append(b []byte) []byte {
	n := len(b)
	b = optStr(b, `,"door":`, q.Door, maxWord)
	b = optStr(b, `,"scheme":`, q.Scheme, maxWord)
	b = optStr(b, `,"host":`, q.Host, maxName)
	b = optInt(b, `,"port":`, int64(q.Port))
	b = optStr(b, `,"address":`, q.Address, maxWord)
	b = optStr(b, `,"method":`, q.Method, maxWord)
	b = optStr(b, `,"path":`, q.Path, maxURI)
	b = optStr(b, `,"path_template":`, q.PathTemplate, maxText)
	b = optList(b, `,"query_keys":`, q.QueryKeys, maxDigest, maxMany)
	b = optStr(b, `,"protocol":`, q.Protocol, maxWord)
	b = optStr(b, `,"http_version":`, q.HTTPVersion, maxWord)
	b = optStr(b, `,"user_agent":`, q.UserAgent, maxName)
	b = optStr(b, `,"trace_id":`, q.TraceID, maxWord)
	b = optStr(b, `,"mcp_method":`, q.MCPMethod, maxDigest)
	b = optStr(b, `,"mcp_tool":`, q.MCPTool, maxName)
	b = optStr(b, `,"llm_model":`, q.LLMModel, maxName)
	b = optList(b, `,"removed":`, q.Removed, maxDigest, maxMany)
	return closeObject(b, n)
}

func (d *Decision) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"verdict":`, d.Verdict, maxWord)
	b = optStr(b, `,"policy":`, d.Policy, maxPolicy)
	b = optStr(b, `,"rule":`, d.Rule, maxName)
	b = optStr(b, `,"version":`, d.Version, maxDigest)
	b = optStr(b, `,"reason":`, d.Reason, maxText)
	b = optStr(b, `,"code":`, d.Code, maxWord)
	b = optBool(b, `,"would_deny":`, d.WouldDeny)
	return closeObject(b, n)
}

func (u *Use) append(b []byte) []byte {
	n := len(b)
	b = optStr(b, `,"handle":`, u.Handle, maxWord)
	b = appendStr(b, `,"provider":`, u.Provider, maxName)
	b = appendStr(b, `,"kind":`, u.Kind, maxWord)
	b = optList(b, `,"scope_asked":`, u.ScopeAsked, maxName, maxMany)
	b = optList(b, `,"scope_granted":`, u.ScopeGranted, maxName, maxMany)
	b = optStr(b, `,"scope_source":`, u.ScopeSource, maxWord)
	b = optBool(b, `,"static":`, u.Static)
	if !u.Expires.IsZero() {
		b = appendTime(b, `,"expires":`, u.Expires)
	}
	b = optInt(b, `,"ttl_s":`, u.TTLSeconds)
	b = optBool(b, `,"cached":`, u.Cached)
	b = optStr(b, `,"public_id":`, u.PublicID, maxName)
	b = optStr(b, `,"session":`, u.Session, maxURI)
	if u.AWS != nil {
		b = u.AWS.append(append(b, `,"aws":`...))
	}
	return closeObject(b, n)
}

func (a *AWSUse) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"service":`, a.Service, maxWord)
	b = optStr(b, `,"operation":`, a.Operation, maxDigest)
	b = optStr(b, `,"region":`, a.Region, maxWord)
	b = optStr(b, `,"account":`, a.Account, maxWord)
	b = optList(b, `,"actions":`, a.Actions, maxDigest, maxFew)
	b = optList(b, `,"resources":`, a.Resources, maxText, maxFew)
	b = appendStr(b, `,"scope":`, a.Scope, maxWord)
	return closeObject(b, n)
}

func (r *Result) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"outcome":`, r.Outcome, maxWord)
	b = optInt(b, `,"status":`, int64(r.Status))
	b = optStr(b, `,"grpc_status":`, r.GRPCStatus, maxWord)
	b = optInt(b, `,"bytes_up":`, r.BytesUp)
	b = optInt(b, `,"bytes_down":`, r.BytesDown)
	b = optStr(b, `,"error_kind":`, r.ErrorKind, maxWord)
	b = optBool(b, `,"retried":`, r.Retried)
	b = optInt(b, `,"sealed":`, int64(r.Sealed))
	b = optInt(b, `,"masked":`, int64(r.Masked))
	b = optStr(b, `,"upstream_request_id":`, r.UpstreamRequestID, maxName)
	return closeObject(b, n)
}

func (e *Event) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"name":`, e.Name, maxDigest)
	b = optMap(b, `,"fields":`, e.Fields, maxURI, maxMany)
	return closeObject(b, n)
}

// closeObject ends the object whose first field was appended at n. Fields bring
// their comma along; the first one's becomes the opening brace.
func closeObject(b []byte, n int) []byte {
	if len(b) == n {
		return append(b, '{', '}')
	}
	b[n] = '{'
	return append(b, '}')
}

func optInt(b []byte, key string, v int64) []byte {
	if v == 0 {
		return b
	}
	return strconv.AppendInt(append(b, key...), v, 10)
}

func optBool(b []byte, key string, v bool) []byte {
	if !v {
		return b
	}
	return append(append(b, key...), "true"...)
}

func optStr(b []byte, key, s string, limit int) []byte {
	if s == "" {
		return b
	}
	return appendStr(b, key, s, limit)
}

func appendStr(b []byte, key, s string, limit int) []byte {
	return appendQuoted(append(b, key...), clamp(s, limit))
}

func optList(b []byte, key string, l []string, limit, items int) []byte {
	if len(l) == 0 {
		return b
	}
	b = append(b, key...)
	n := len(b)
	for i, s := range l {
		if i == items-1 && len(l) > items {
			b = appendStr(b, ",", ellipsis, limit)
			break
		}
		b = appendStr(b, ",", s, limit)
	}
	b[n] = '['
	return append(b, ']')
}

func optMap(b []byte, key string, m map[string]string, limit, items int) []byte {
	if len(m) == 0 {
		return b
	}
	var space [maxMany]string // keeps the keys of an ordinary map off the heap
	keys := space[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b = append(b, key...)
	n := len(b)
	for i, k := range keys {
		if i == items-1 && len(keys) > items {
			b = appendStr(b, ",", ellipsis, limit)
			b = append(b, `:""`...)
			break
		}
		b = appendStr(b, ",", k, limit)
		b = appendStr(b, ":", m[k], limit)
	}
	b[n] = '{'
	return append(b, '}')
}

// appendTime writes RFC 3339 in UTC. A year that RFC 3339 cannot write becomes
// the zero time: a broken clock must not break the line.
func appendTime(b []byte, key string, t time.Time) []byte {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		t = time.Time{}
	}
	b = append(append(b, key...), '"')
	return append(t.AppendFormat(b, time.RFC3339Nano), '"')
}

// clamp cuts s to limit bytes, at a rune, and marks the cut.
func clamp(s string, limit int) string {
	if limit >= maxText && len(s) > limit/3 {
		s = within(s, limit)
	}
	if len(s) <= limit {
		return s
	}
	cut := limit - len(ellipsis)
	for i := 0; i < utf8.UTFMax && cut > 0 && !utf8.RuneStart(s[cut]); i++ {
		cut--
	}
	return s[:cut] + ellipsis
}

// within cuts s where, escaped, it would exceed twice limit: a long text that is
// mostly control characters grows sixfold, and a line that holds many must still
// be shorter than maxLine.
func within(s string, limit int) string {
	size := 0
	for i, r := range s {
		switch {
		case r == '\n' || r == '\t' || r == '"' || r == '\\':
			size += 2
		case r >= 0x20 && r < 0x7f:
			size++
		case r != utf8.RuneError && unicode.IsPrint(r):
			size += utf8.RuneLen(r)
		case r <= 0xffff:
			size += 6
		default:
			size += 12
		}
		if size > 2*limit-len(ellipsis) {
			return s[:i] + ellipsis
		}
	}
	return s
}

// plain are the bytes that stand for themselves in a JSON string.
//
//nolint:gochecknoglobals // a constant table
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

const hexDigits = "0123456789abcdef"

// appendQuoted appends s as a JSON string of printable characters only.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
			if (r != utf8.RuneError || size > 1) && unicode.IsPrint(r) {
				i += size
				continue
			}
		}
		b = append(b, s[start:i]...)
		b = appendEscaped(b, r)
		i += size
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// appendEscaped appends r as RFC 8259 section 7 wants it; invalid UTF-8 arrives
// here as U+FFFD.
func appendEscaped(b []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	case '\b':
		return append(b, '\\', 'b')
	case '\f':
		return append(b, '\\', 'f')
	}
	if r > 0xffff { // a surrogate pair
		r -= 0x10000
		b = appendU(b, 0xd800+(r>>10))
		return appendU(b, 0xdc00+(r&0x3ff))
	}
	return appendU(b, r)
}

func appendU(b []byte, r rune) []byte {
	return append(b, '\\', 'u', hexDigits[r>>12&0xf], hexDigits[r>>8&0xf], hexDigits[r>>4&0xf], hexDigits[r&0xf])
}
