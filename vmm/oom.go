package vmm

import (
	"os"
	"path/filepath"
	"strings"
)

// ranOutOfMemory says whether the kernel has killed a process of this process's
// control group for want of memory.
func ranOutOfMemory() bool {
	group, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	path, ok := controlGroup(string(group))
	if !ok {
		return false
	}
	events, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "memory.events"))
	return err == nil && oomKills(string(events))
}

// controlGroup finds the one group that a process has in the unified hierarchy.
func controlGroup(text string) (path string, ok bool) {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, true
		}
	}
	return "", false
}

func oomKills(events string) bool {
	for line := range strings.Lines(events) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}
