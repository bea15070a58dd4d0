package resolve

import (
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// FuzzAnswer: whatever a server says, only an answer to our question counts,
// and never more of it than we keep.
func FuzzAnswer(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("api.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q}, Answers: []dnsmessage.Resource{
		{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("api.example."), Class: dnsmessage.ClassINET}, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("b.example.")}},
		{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("b.example."), Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: [4]byte{203, 0, 113, 1}}},
	}}
	good, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte{0, 7, 0x80, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, found, err := parse(b, 7, q)
		if err != nil && (found || len(addrs) > 0) || len(addrs) > maxAddresses {
			t.Errorf("%d addresses, found %v, with %v", len(addrs), found, err)
		}
		if len(b) > 1 && (b[0] != 0 || b[1] != 7) && err == nil {
			t.Error("an answer with another id")
		}
		for _, a := range addrs {
			if !a.Is4() {
				t.Errorf("%v was not asked for", a)
			}
		}
	})
}
