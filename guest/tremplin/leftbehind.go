package tremplin

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// leftBehind returns the pid of an incusd of ours that runs, whether or not it
// answers yet: an earlier tremplin may have been killed while it started, and
// two of them would have one database. It is 0 when there is none.
func (d *daemon) leftBehind() int {
	mine, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if d.isIncus(filepath.Join("/proc", e.Name()), mine) {
			return pid
		}
	}
	return 0
}

// isIncus tells an incusd from the helpers that it starts, which are the same
// program, and from whatever calls itself so in a container.
func (d *daemon) isIncus(proc, namespace string) bool {
	words := fields(proc + "/cmdline")
	// A script has its interpreter before it.
	at := slices.Index(words[:min(len(words), 2)], d.cfg.Incusd)
	if at < 0 || at+1 >= len(words) || words[at+1] != incusdArgs[0] {
		return false
	}
	if info, err := os.Stat(proc); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return false
	}
	theirs, err := os.Readlink(proc + "/ns/pid")
	return err == nil && theirs == namespace && slices.Contains(fields(proc+"/environ"), "INCUS_DIR="+d.cfg.IncusDir)
}

// fields reads words that a NUL follows each.
func fields(path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var list []string
	for word := range bytes.SplitSeq(bytes.TrimSuffix(data, []byte{0}), []byte{0}) {
		list = append(list, string(word))
	}
	return list
}
