package setup

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

// An entry is what the journal was given.
type entry struct {
	Message  string
	Priority journal.Priority
	Fields   map[string]string
}

// capture is a log whose entries are kept; err is what sending ends with.
func capture(level slog.Level, err error) (log *slog.Logger, entries *[]entry, text *bytes.Buffer) {
	entries, text = new([]entry), new(bytes.Buffer)
	h := &journalHandler{level: level, fields: map[string]string{"SYSLOG_IDENTIFIER": "test"},
		otherwise: slog.NewTextHandler(text, nil),
		send: func(message string, p journal.Priority, fields map[string]string) error {
			*entries = append(*entries, entry{message, p, fields})
			return err
		}}
	return slog.New(h), entries, text
}

func TestJournalFields(t *testing.T) {
	log, got, _ := capture(slog.LevelInfo, nil)
	vm := log.With("vm", "a b", "owner", "1000", "id", "abc")
	vm.Warn("it ended", "err", errors.New("two\nlines"), "_PID", 1, "audit", true)
	vm.Debug("not this")
	log.WithGroup("call").Error("refused", slog.Group("who", "uid", 7), "MESSAGE", "x=y")
	want := []entry{
		{`it ended vm="a b" owner=1000 id=abc err="two\nlines" _PID=1 audit=true`, journal.PriWarning, map[string]string{
			"SYSLOG_IDENTIFIER": "test", "VM": "a b", "OWNER": "1000", "AUBERGE_VM_ID": "abc",
			"AUBERGE_ERR": "two\nlines", "AUBERGE__PID": "1", "AUBERGE_AUDIT": "true"}},
		{`refused call.who.uid=7 call.MESSAGE="x=y"`, journal.PriErr, map[string]string{
			"SYSLOG_IDENTIFIER": "test", "AUBERGE_CALL_WHO_UID": "7", "AUBERGE_CALL_MESSAGE": "x=y"}},
	}
	if d := cmp.Diff(want, *got); d != "" {
		t.Error(d)
	}
}

// What guests and callers have said does not fill the journal.
func TestJournalBounds(t *testing.T) {
	log, got, _ := capture(slog.LevelInfo, nil)
	log.Info("long", "console", strings.Repeat("é", maxField))
	if e := (*got)[0]; len(e.Fields["AUBERGE_CONSOLE"]) > maxField+3 || len(e.Message) > maxField+100 {
		t.Errorf("%d bytes in the field, %d in the message", len(e.Fields["AUBERGE_CONSOLE"]), len(e.Message))
	}
}

// Where the journal takes nothing, the log goes to standard error.
func TestJournalGone(t *testing.T) {
	log, _, text := capture(slog.LevelInfo, errors.New("no journal"))
	log.With("vm", "x").Info("here", "pid", 1)
	if !strings.Contains(text.String(), "msg=here vm=x pid=1") {
		t.Errorf("standard error has %q", text)
	}
}
