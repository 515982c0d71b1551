package concierge

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/vmm"
)

// A Use is what the processes of a VM take of the host. What could not be
// found out is not there.
type Use struct {
	CPU                time.Duration
	HasCPU             bool
	Resident           uint64 // bytes
	HasResident        bool
	ReadBytes, Written uint64
	HasIO              bool
}

// useOf reads what a VM takes: from its cgroup where it is a unit of systemd,
// from its processes otherwise. root is "/", but in tests.
func useOf(root, id string, supervisor vmm.Process) Use {
	// The slice is the one in the template of the units.
	unit := filepath.Join(root, "sys/fs/cgroup/auberge.slice/auberge-vm@"+id+".service")
	if _, err := os.Stat(unit); err == nil {
		return cgroupUse(unit)
	}
	if supervisor.PID <= 0 || vmm.IdentifyProcess(supervisor.PID) != supervisor {
		return Use{}
	}
	return processesUse(root, supervisor.PID)
}

// cgroupUse reads the files of a cgroup of version 2 (kernel documentation,
// "Control Group v2").
func cgroupUse(dir string) Use {
	var u Use
	if b, err := os.ReadFile(filepath.Join(dir, "cpu.stat")); err == nil {
		var us uint64
		if us, u.HasCPU = keyed(b, "usage_usec"); u.HasCPU {
			u.CPU = time.Duration(us) * time.Microsecond
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "memory.current")); err == nil {
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		u.Resident, u.HasResident = n, err == nil
	}
	if b, err := os.ReadFile(filepath.Join(dir, "io.stat")); err == nil {
		u.HasIO = true
		for field := range strings.FieldsSeq(string(b)) {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			switch {
			case err != nil:
			case key == "rbytes":
				u.ReadBytes += n
			case key == "wbytes":
				u.Written += n
			}
		}
	}
	return u
}

// keyed finds "key value" among lines.
func keyed(b []byte, key string) (uint64, bool) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		name, value, ok := strings.Cut(sc.Text(), " ")
		if ok && strings.TrimSuffix(name, ":") == key {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// clockTicks is how many of the kernel's ticks are a second, on every x86-64.
const clockTicks = 100

// processesUse adds up the supervisor and the processes that it has started.
// The guest's memory is shared among them, and counts once.
func processesUse(root string, supervisor int) Use {
	proc := filepath.Join(root, "proc")
	main := strconv.Itoa(supervisor)
	pids := []string{main}
	if b, err := os.ReadFile(filepath.Join(proc, main, "task", main, "children")); err == nil {
		pids = append(pids, strings.Fields(string(b))...)
	}
	u := Use{HasCPU: true, HasResident: true, HasIO: true}
	var shared uint64
	for _, pid := range pids {
		dir := filepath.Join(proc, pid)
		ticks, ok := cpuTicks(dir)
		u.HasCPU = u.HasCPU && ok
		u.CPU += time.Duration(ticks) * time.Second / clockTicks
		resident, share, ok := residentPages(dir)
		u.HasResident = u.HasResident && ok
		u.Resident += resident - min(share, resident)
		shared = max(shared, share)
		b, err := os.ReadFile(filepath.Join(dir, "io")) // often denied
		u.HasIO = u.HasIO && err == nil
		r, _ := keyed(b, "read_bytes")
		w, _ := keyed(b, "write_bytes")
		u.ReadBytes, u.Written = u.ReadBytes+r, u.Written+w
	}
	u.Resident = (u.Resident + shared) * uint64(os.Getpagesize())
	return u
}

// cpuTicks reads the fields 14 and 15 of a stat file.
func cpuTicks(proc string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return 0, false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const user, system = 14 - 3, 15 - 3
	if len(f) <= system {
		return 0, false
	}
	a, aerr := strconv.ParseUint(string(f[user]), 10, 64)
	c, cerr := strconv.ParseUint(string(f[system]), 10, 64)
	return a + c, aerr == nil && cerr == nil
}

// residentPages reads what a process has in memory, and what of it may be
// shared with others.
func residentPages(proc string) (resident, shared uint64, ok bool) {
	b, err := os.ReadFile(filepath.Join(proc, "statm"))
	if err != nil {
		return 0, 0, false
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0, 0, false
	}
	resident, rerr := strconv.ParseUint(f[1], 10, 64)
	shared, serr := strconv.ParseUint(f[2], 10, 64)
	return resident, shared, rerr == nil && serr == nil
}
