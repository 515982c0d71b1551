package concierge

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/vmm"
)

// tree writes files beneath a directory.
func tree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUseOfVM(t *testing.T) {
	me := vmm.IdentifyProcess(os.Getpid())
	pid := strconv.Itoa(me.PID)
	page := uint64(os.Getpagesize())

	// A VM that is a unit has a cgroup of its own.
	root := t.TempDir()
	const unit = "/auberge.slice/auberge-vm@abc.service"
	tree(t, root, map[string]string{
		"sys/fs/cgroup" + unit + "/cpu.stat":       "usage_usec 2500000\nuser_usec 1\n",
		"sys/fs/cgroup" + unit + "/memory.current": "4096\n",
		"sys/fs/cgroup" + unit + "/io.stat":        "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n",
	})
	if u := useOf(root, "abc", vmm.Process{}); u != (Use{2500 * time.Millisecond, true, 4096, true, 11, 22, true}) {
		t.Errorf("of a unit: %+v", u)
	}

	// Otherwise its processes are added up, and what they share counts once.
	root = t.TempDir()
	stat := func(user, system string) string {
		return "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 " + user + " " + system + " 16\n"
	}
	tree(t, root, map[string]string{
		"proc/" + pid + "/task/" + pid + "/children": "70 71 ",
		"proc/" + pid + "/stat":                      stat("100", "50"), "proc/" + pid + "/statm": "9 3 1 0 0 0 0\n",
		"proc/70/stat": stat("200", "0"), "proc/70/statm": "9 110 100 0 0 0 0\n",
		"proc/71/stat": stat("0", "0"), "proc/71/statm": "9 104 100 0 0 0 0\n",
		"proc/70/io": "rchar: 5\nread_bytes: 3\nwrite_bytes: 4\n",
	})
	u := useOf(root, "abc", me)
	if u.CPU != 3500*time.Millisecond || u.Resident != (2+10+4+100)*page || !u.HasCPU || !u.HasResident {
		t.Errorf("of processes: %+v", u)
	}
	if u.HasIO {
		t.Error("the I/O of some processes is told as that of the VM")
	}
	tree(t, root, map[string]string{"proc/71/io": "read_bytes: 1\nwrite_bytes: 1\n", "proc/" + pid + "/io": "read_bytes: 0\nwrite_bytes: 0\n"})
	if u := useOf(root, "abc", me); !u.HasIO || u.ReadBytes != 4 || u.Written != 5 {
		t.Errorf("with I/O: %+v", u)
	}
	// A process that has got the number later is none of the VM's.
	me.Began++
	if u := useOf(root, "abc", me); u != (Use{}) {
		t.Errorf("of another process: %+v", u)
	}
}

// What a VM takes is there while it runs, and its agent's answers are noticed.
func TestStats(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if len(st.VMs) != 1 {
		t.Fatalf("%+v", st)
	}
	v := st.VMs[0]
	if v.Name != "x" || v.UID != 64101 || v.State != "running" || v.Memory != minMemoryMiB<<20 || v.Answered.IsZero() || v.Silent ||
		!v.Use.HasCPU || !v.Use.HasResident || v.Use.Resident == 0 {
		t.Errorf("%+v", v)
	}
	if st.StateFree <= 0 || st.RuntimeFree <= 0 || st.MemoryFree == 0 {
		t.Errorf("%+v", st)
	}
	b.stop(s, "x")
	if st := s.Stats(); len(st.VMs) != 0 {
		t.Errorf("after the end: %+v", st)
	}
}
