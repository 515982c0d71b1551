package garcon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guest/garcon/watch"
)

// describeSystem says in lines what the container is and how it fares.
func describeSystem(home string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "system: %s\n", osRelease("/etc/os-release"))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(&b, "kernel: %s, host name %s\n", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Nodename[:]))
	}
	for _, path := range []string{"/proc/loadavg", "/proc/uptime"} {
		if text, err := readSome(path); err == nil {
			fmt.Fprintf(&b, "%s: %s\n", path, strings.TrimSpace(text))
		}
	}
	if text, err := readSome("/proc/meminfo"); err == nil {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "MemTotal:") || strings.HasPrefix(line, "MemAvailable:") {
				b.WriteString(line)
			}
		}
	}
	if free, err := watch.Free(home); err == nil {
		fmt.Fprintf(&b, "free below %s: %d MiB\n", home, free>>20)
	}
	return b.String()
}

// osRelease is the PRETTY_NAME of os-release(5).
func osRelease(path string) string {
	text, err := readSome(path)
	if err != nil {
		return "unknown: " + err.Error()
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return "unknown"
}

func readSome(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 16<<10))
	return string(text), err
}
