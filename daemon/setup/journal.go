package setup

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// Logger logs to the journal with fields where standard error is the journal's,
// and to standard error as text elsewhere.
func Logger(level slog.Leveler) *slog.Logger {
	text := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	if ours, err := journal.StderrIsJournalStream(); err != nil || !ours {
		return slog.New(text)
	}
	return slog.New(&journalHandler{level: level, otherwise: text, send: journal.Send,
		fields: map[string]string{"SYSLOG_IDENTIFIER": filepath.Base(os.Args[0])}})
}

// A journalHandler gives the journal each attribute as a field: a VM's name and
// owner as VM and OWNER, whatever else with a prefix of ours, so that nothing is
// taken for one of the journal's own fields. The message has them too, for
// people.
type journalHandler struct {
	level     slog.Leveler
	otherwise slog.Handler
	send      func(message string, priority journal.Priority, fields map[string]string) error
	// fields and text are those of the attributes that every record has.
	fields map[string]string
	text   string
	group  string
}

var _ slog.Handler = (*journalHandler)(nil)

// fieldNames are the fields of attributes that have a name of their own.
var fieldNames = map[string]string{"vm": "VM", "owner": "OWNER", "id": "AUBERGE_VM_ID"}

// maxField bounds, in bytes, what one attribute may have of an entry: some come
// from guests and callers.
const maxField = 4 << 10

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	out := h.clone()
	r.Attrs(func(a slog.Attr) bool {
		out.add(out.group, a)
		return true
	})
	if err := h.send(r.Message+out.text, priority(r.Level), out.fields); err != nil {
		return h.otherwise.Handle(ctx, r)
	}
	return nil
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := h.clone()
	for _, a := range attrs {
		out.add(out.group, a)
	}
	out.otherwise = h.otherwise.WithAttrs(attrs)
	return out
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	out := h.clone()
	if name != "" {
		out.group += name + "."
		out.otherwise = h.otherwise.WithGroup(name)
	}
	return out
}

func (h *journalHandler) clone() *journalHandler {
	out := *h
	out.fields = maps.Clone(h.fields)
	return &out
}

// add gives an attribute to the fields and to the text.
func (h *journalHandler) add(group string, a slog.Attr) {
	v := a.Value.Resolve()
	switch {
	case a.Equal(slog.Attr{}):
		return
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			h.add(group, member)
		}
		return
	}
	key, value := group+a.Key, v.String()
	if len(value) > maxField {
		value = strings.ToValidUTF8(value[:maxField], "") + "..."
	}
	h.fields[fieldName(key)] = value
	h.text += " " + key + "=" + quoted(value)
}

func fieldName(key string) string {
	if name := fieldNames[key]; name != "" {
		return name
	}
	return "AUBERGE_" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 'a' + 'A'
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, key)
}

// quoted is a value on a line that people read.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || r == '"' || r == '=' || !unicode.IsPrint(r)
	}) {
		return strconv.Quote(s)
	}
	return s
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l < slog.LevelInfo:
		return journal.PriDebug
	case l < slog.LevelWarn:
		return journal.PriInfo
	case l < slog.LevelError:
		return journal.PriWarning
	}
	return journal.PriErr
}
