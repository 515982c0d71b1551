package core

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseKmsg(t *testing.T) {
	for record, want := range map[string]kmsgRecord{
		"6,339,5140900,-;NET: Registered PF_INET6 protocol family\n":         {6, 339, 5140900 * time.Microsecond, []byte("NET: Registered PF_INET6 protocol family")},
		"30,340,0,-;systemd[1]: x\n":                                         {6, 340, 0, []byte("systemd[1]: x")},
		"3,0,1,c,caller=T1;a;b\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n": {3, 0, time.Microsecond, []byte("a;b")},
		`4,1,2,-;one\x0atwo \x5c \xzz \x4` + "\n":                            {4, 1, 2 * time.Microsecond, []byte("one\ntwo \\ \\xzz \\x4")},
		"7,18446744073709551615,1,-;":                                        {7, 1<<64 - 1, time.Microsecond, []byte{}},
	} {
		got, ok := parseKmsg([]byte(record))
		if !ok || got.severity != want.severity || got.seq != want.seq || got.sinceBoot != want.sinceBoot || !bytes.Equal(got.text, want.text) {
			t.Errorf("%q: %+v, %v", record, got, ok)
		}
	}
	for _, record := range []string{"", "\n", ";", "6,1,2", "6,1;x", "x,1,2,-;x", "6,-1,2,-;x", "6,1,-2,-;x", "6,1,99999999999999999999,-;x", "6,1,9223372036854775807,-;x"} {
		if got, ok := parseKmsg([]byte(record)); ok {
			t.Errorf("%q is none, but gives %+v", record, got)
		}
	}
}

func TestParseSyslog(t *testing.T) {
	for message, want := range map[string]struct {
		severity int
		text     string
	}{
		"<30>Nov 21 19:05:06 sshd[12]: ready":                                 {6, "sshd[12]: ready"},
		"<0>Nov  1 00:00:00 x: on the first":                                  {0, "x: on the first"},
		"<191>cron: no time":                                                  {7, "cron: no time"},
		"<11>2026-11-21T19:05:06.123456+01:00 app: RFC 3339":                  {3, "app: RFC 3339"},
		"<165>1 2026-11-21T19:05:06.003Z host su 77 ID47 - \ufeff'su' failed": {5, "su[77]: 'su' failed"},
		"<165>1 - - su - - [a@1 b=\"c\"] text":                                {5, `su: [a@1 b="c"] text`},
		"<165>1 - - su - - -":                                                 {5, "su: "},
		"<13>1 more thing":                                                    {5, "1 more thing"},
		"no priority":                                                         {5, "no priority"},
		"1 - - su - - - x":                                                    {5, "1 - - su - - - x"},
		"<192>too high":                                                       {5, "<192>too high"},
		"<-1>negative":                                                        {5, "<-1>negative"},
		"<>none":                                                              {5, "<>none"},
		"<6":                                                                  {5, "<6"},
		"":                                                                    {5, ""},
		"<6>":                                                                 {6, ""},
		"<6>Nov 21 19:05:06":                                                  {6, "Nov 21 19:05:06"},
		"<6>Xxx 21 19:05:06 y":                                                {6, "Xxx 21 19:05:06 y"},
	} {
		if severity, text := parseSyslog([]byte(message)); severity != want.severity || string(text) != want.text {
			t.Errorf("%q: %d, %q; want %d, %q", message, severity, text, want.severity, want.text)
		}
	}
}

func TestSplitLines(t *testing.T) {
	long := strings.Repeat("x", maxLogLine)
	for text, want := range map[string][]string{
		"":                        nil,
		"\n\r\n\x00\n":            nil,
		"one":                     {"one"},
		"one\ntwo\r\n\nthree\x00": {"one", "two", "three"},
		long:                      {long},
		long + long + "y":         {long, long, "y"},
		"\x1b[1m\xff":             {"\x1b[1m\xff"},
	} {
		var got []string
		splitLines([]byte(text), func(l []byte) { got = append(got, string(l)) })
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%.40q: %.60q", text, got)
		}
	}
}

// A line never says more than what was sent, is never too long, and has a
// severity that exists.
func FuzzKmsg(f *testing.F) {
	for _, s := range []string{"6,339,5140900,-;text\n", "4,1,2,-;one\\x0atwo\n K=v\n", "6,1,2", "", "7,1,9223372036854775807,c;x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok := parseKmsg(data)
		if !ok {
			return
		}
		if r.severity < 0 || r.severity > 7 || r.sinceBoot < 0 || len(r.text) > len(data) {
			t.Errorf("%q: %+v", data, r)
		}
		checkLines(t, r.text)
	})
}

func FuzzSyslog(f *testing.F) {
	for _, s := range []string{"<30>Nov 21 19:05:06 sshd[12]: ready", "<165>1 2026-11-21T19:05:06.003Z host su 77 ID47 - x", "<165>1 - - su - - -", "<", "<999>", "\x00\n\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		severity, text := parseSyslog(data)
		if severity < 0 || severity > 7 {
			t.Errorf("%q has the severity %d", data, severity)
		}
		// Brackets around the process may be added.
		if len(text) > len(data)+4 {
			t.Errorf("%q became %q", data, text)
		}
		checkLines(t, text)
	})
}

func checkLines(t *testing.T, text []byte) {
	t.Helper()
	total := 0
	splitLines(text, func(l []byte) {
		if len(l) == 0 || len(l) > maxLogLine || bytes.ContainsRune(l, '\n') {
			t.Errorf("a line of %d bytes: %q", len(l), l)
		}
		total += len(l)
	})
	if total > len(text) {
		t.Errorf("%d bytes became %d", len(text), total)
	}
}

func TestListenSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	writeFile(t, path, "left by somebody")
	s, err := ListenSyslog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const first, second = "<11>Nov 21 19:05:06 a: one\ntwo", "<14>b: three"
	for _, m := range []string{first, "", second} {
		if _, err := c.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	// Stopped before it runs, it still hands on what is there.
	s.Stop()
	before := time.Now()
	var got []string
	err = s.Run(func(l LogLine) {
		got = append(got, fmt.Sprint(l.Severity, " ", string(l.Text)))
		if l.Time.Before(before) || l.SinceBoot != 0 {
			t.Errorf("a time of %v", l)
		}
	}, func(uint64) { t.Error("something was lost") })
	if want := "3 a: one|3 two|6 b: three"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// What the kernel says comes as it is written, from what it still has on.
func TestKernelLog(t *testing.T) {
	mark := fmt.Sprintf("auberge test %d", time.Now().UnixNano())
	before, err := OpenKernelLog()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := os.WriteFile("/dev/kmsg", []byte("<4>"+mark+"\n"), 0); err != nil {
		t.Fatal(err)
	}
	found := make(chan LogLine, 1)
	done := make(chan error, 1)
	go func() {
		done <- before.Run(func(l LogLine) {
			if string(l.Text) == mark {
				found <- l
			}
		}, func(uint64) {})
	}()
	if l := <-found; l.Severity != 4 || l.SinceBoot <= 0 || !l.Time.IsZero() {
		t.Errorf("%+v", l)
	}
	before.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
