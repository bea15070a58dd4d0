package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/attache-dev/attache/audit"
)

// Terminal colours, ECMA-48 section 8.3.117.
const (
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	reset  = "\x1b[0m"
)

// printer writes for people and counts checks. It is safe for concurrent use.
type printer struct {
	mu             sync.Mutex // guards all
	w              io.Writer
	color          bool
	passed, failed int
}

// newPrinter uses colour on terminals, and where FORCE_COLOR asks for it.
func newPrinter(w *os.File) *printer {
	color := audit.WantColor(w, os.Getenv) || os.Getenv("FORCE_COLOR") != "" && os.Getenv("NO_COLOR") == ""
	return &printer{w: w, color: color}
}

func (p *printer) paint(color, s string) string {
	if !p.color {
		return s
	}
	return color + s + reset
}

func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *printer) heading(n int, s string) {
	p.line("\n%s", p.paint(bold, fmt.Sprintf("%d. %s", n, s)))
}

// say writes a remark.
func (p *printer) say(format string, args ...any) {
	p.line("   %s", p.paint(dim, fmt.Sprintf(format, args...)))
}

// from writes text of a program, marked with its name.
func (p *printer) from(color, who, text string) {
	for l := range strings.Lines(text) {
		p.line("   %s %s", p.paint(color, fmt.Sprintf("%-8s│", who)), strings.TrimRight(l, "\n"))
	}
}

// check counts and shows one claim. Detail is what was seen.
func (p *printer) check(ok bool, claim, detail string, args ...any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	mark := p.paint(green, "ok  ")
	p.passed++
	if !ok {
		p.passed--
		p.failed++
		mark = p.paint(red, "FAIL")
	}
	detail = strings.TrimSpace(fmt.Sprintf(detail, args...))
	if detail != "" {
		detail = p.paint(dim, "  "+audit.Safe(detail))
	}
	fmt.Fprintf(p.w, "   %s %s%s\n", mark, claim, detail)
	return ok
}

// each calls f with every line of r until its end.
func each(r io.Reader, f func(string)) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 16<<20)
	for s.Scan() {
		f(s.Text())
	}
}
