//go:build !linux

package front

import "time"

// lot parks nothing here: each idle connection has its goroutine.
type lot struct{}

type parked struct {
	c      *clientConn
	until  time.Time
	resume func()
}

const parks = false

func (*lot) add(p *parked)    { go p.resume() }
func (*lot) wake(*clientConn) {}
func (*lot) close()           {}
func (*lot) len() int         { return 0 }
