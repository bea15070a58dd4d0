package isolate

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Limits of DNS over TCP: one query is far below 1 KiB.
const (
	maxQuery    = 4096
	streamIdle  = 10 * time.Second
	maxStreams  = 64 // connections at one time; more wait to be accepted
	streamReply = 5 * time.Second
)

// Serve answers on the namespace's DNS sockets until they are closed.
func (r *Resolver) Serve(s *Sockets) {
	var wg sync.WaitGroup
	for _, c := range s.packets {
		wg.Go(func() { r.packets(c) })
	}
	for _, ln := range s.streams {
		wg.Go(func() { r.streams(ln) })
	}
	wg.Wait()
}

// packets answers from the address that was asked, whichever of the world's
// it was: clients drop answers from others.
func (r *Resolver) packets(c *net.UDPConn) {
	read, err := packetReader(c)
	if err != nil {
		return // the sockets are closed
	}
	buf := make([]byte, maxQuery)
	for {
		n, reply, err := read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a client's ICMP error, read at the next call
			continue
		}
		if answer := r.Answer(buf[:n]); answer != nil {
			reply(answer)
		}
	}
}

// packetReader reads a datagram and tells how to answer it.
func packetReader(c *net.UDPConn) (func([]byte) (int, func([]byte), error), error) {
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.To4() != nil {
		p := ipv4.NewPacketConn(c)
		if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
			return nil, err
		}
		return func(buf []byte) (int, func([]byte), error) {
			n, cm, from, err := p.ReadFrom(buf)
			return n, func(b []byte) {
				if cm != nil { // lost answers are asked for again
					_, _ = p.WriteTo(b, &ipv4.ControlMessage{Src: cm.Dst}, from)
				}
			}, err
		}, nil
	}
	p := ipv6.NewPacketConn(c)
	if err := p.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return nil, err
	}
	return func(buf []byte) (int, func([]byte), error) {
		n, cm, from, err := p.ReadFrom(buf)
		return n, func(b []byte) {
			if cm != nil {
				_, _ = p.WriteTo(b, &ipv6.ControlMessage{Src: cm.Dst}, from)
			}
		}, err
	}, nil
}

// streams serves DNS over TCP: RFC 7766.
func (r *Resolver) streams(ln net.Listener) {
	slots := make(chan struct{}, maxStreams)
	for {
		slots <- struct{}{}
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: others need them more
			<-slots
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go func() {
			defer func() { _ = c.Close(); <-slots }()
			r.stream(c)
		}()
	}
}

func (r *Resolver) stream(c net.Conn) {
	buf := make([]byte, maxQuery)
	for {
		_ = c.SetReadDeadline(time.Now().Add(streamIdle))
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		answer := r.Answer(buf[:n])
		if answer == nil {
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(streamReply))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil { //nolint:gosec // far below 64 KiB
			return
		}
	}
}
