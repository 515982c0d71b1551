package core

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// kmsgLine bounds one log line: the kernel refuses longer ones.
const kmsgLine = 960

// NewLogger logs to the kernel's log, which reaches the console unless the
// parameter quiet holds back all but errors. Without /dev/kmsg it logs to the
// standard error.
func NewLogger(name string) *slog.Logger {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	// By default the kernel lets through only a few lines from outside it.
	os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0)
	return slog.New(newKmsgHandler(f, name))
}

// A kmsgHandler writes each record as one line, "<priority>name: message
// key=value", with the levels of syslog(2).
type kmsgHandler struct {
	name string
	text slog.Handler // writes into buf
	line *kmsgBuffer
}

// A kmsgBuffer is what all handlers derived from one share.
type kmsgBuffer struct {
	mu  sync.Mutex
	out io.Writer
	buf bytes.Buffer
}

func newKmsgHandler(out io.Writer, name string) *kmsgHandler {
	line := &kmsgBuffer{out: out}
	text := slog.NewTextHandler(&line.buf, &slog.HandlerOptions{ReplaceAttr: dropHead})
	return &kmsgHandler{name: name, text: text, line: line}
}

// dropHead leaves out what Handle writes. A record's own level and message
// cannot be told from attributes of these names, which nothing uses.
func dropHead(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

func (h *kmsgHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.text.Enabled(ctx, l)
}

func (h *kmsgHandler) Handle(ctx context.Context, r slog.Record) error {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	h.line.buf.Reset()
	fmt.Fprintf(&h.line.buf, "<%d>%s: %s ", priority(r.Level), h.name, r.Message)
	r.Time = time.Time{} // the kernel adds its own
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	line := h.line.buf.Bytes()
	if len(line) > kmsgLine {
		line = append(line[:kmsgLine], "...\n"...)
	}
	_, err := h.line.out.Write(line)
	return err
}

func (h *kmsgHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &kmsgHandler{name: h.name, text: h.text.WithAttrs(attrs), line: h.line}
}

func (h *kmsgHandler) WithGroup(group string) slog.Handler {
	return &kmsgHandler{name: h.name, text: h.text.WithGroup(group), line: h.line}
}

func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
