package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

// statusLines reads /proc/PID/status, each line as its fields.
func statusLines(t *testing.T, pid int) [][]string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 1 {
			lines = append(lines, f)
		}
	}
	return lines
}

// withTerminal lets a command that runs as another user have a terminal of
// its own.
func withTerminal(cmd *exec.Cmd) *syscall.SysProcAttr {
	attr := *cmd.SysProcAttr
	attr.Setsid, attr.Setctty = true, true
	return &attr
}
