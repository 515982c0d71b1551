package core

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestKmsgLines(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newKmsgHandler(&out, "maitred"))
	log.Debug("unseen")
	log.Info("service started", "service", "vshd", "time", 7)
	log.Warn("careful")
	log.With("vm", "a").WithGroup("g").Error("cannot go on", "err", errors.New("line\nbreak"))
	want := "<6>maitred: service started service=vshd time=7\n" +
		"<4>maitred: careful \n" +
		"<3>maitred: cannot go on vm=a g.err=\"line\\nbreak\"\n"
	if out.String() != want {
		t.Errorf("logged\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	log.Info("long", "text", strings.Repeat("x", 5000))
	if out.Len() > 1000 || !strings.HasSuffix(out.String(), "...\n") {
		t.Errorf("a long line has %d bytes", out.Len())
	}
}

func TestReadHostname(t *testing.T) {
	for text, want := range map[string]string{"": "", "penguin\n": "penguin", "# x\n\n  a.b \nc\n": "a.b"} {
		path := t.TempDir() + "/hostname"
		writeFile(t, path, text)
		if got := readHostname(path); got != want {
			t.Errorf("%q names %q, want %q", text, got, want)
		}
	}
	if got := readHostname("/nonexistent"); got != "" {
		t.Errorf("a missing file names %q", got)
	}
}

func TestLoadModules(t *testing.T) {
	dir := t.TempDir()
	if err := LoadModules(dir); err != nil {
		t.Errorf("without a list: %v", err)
	}
	writeFile(t, dir+"/order", "# comment\n\nmissing.ko\nbroken.ko\n")
	writeFile(t, dir+"/broken.ko", "this is no module")
	err := LoadModules(dir)
	if err == nil || !strings.Contains(err.Error(), "missing.ko:") || !strings.Contains(err.Error(), "broken.ko:") {
		t.Errorf("all failures are to be told: %v", err)
	}
}
