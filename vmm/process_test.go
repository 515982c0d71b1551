package vmm_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/vmm"
)

// A process is killed only as itself: one that has its number, but began at
// another time, is somebody else.
func TestKillOfAKnownProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	p := vmm.IdentifyProcess(cmd.Process.Pid)
	if p.PID != cmd.Process.Pid || p.Began == 0 {
		t.Fatalf("identified as %v", p)
	}
	later := vmm.Process{PID: p.PID, Began: p.Began + 1}
	if err := (vmm.Processes{Supervisor: later, Hypervisor: later}).Kill(t.Context()); err != nil {
		t.Errorf("one that has gone already: %v", err)
	}
	if !alive(p.PID) || vmm.IdentifyProcess(p.PID) != p {
		t.Fatal("somebody else was killed")
	}
	if err := (vmm.Processes{}).Kill(t.Context()); err == nil {
		t.Error("nothing was known, and it was killed")
	}
	// Stopped, it takes no note of anything else.
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := (vmm.Processes{Supervisor: p}).Kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
	if err := (vmm.Processes{Supervisor: p}).Kill(t.Context()); err != nil {
		t.Errorf("after its end: %v", err)
	}
	if got := vmm.IdentifyProcess(p.PID); got != (vmm.Process{}) {
		t.Errorf("after its end it is %v", got)
	}
}

// What is in a directory goes, what links in it point to stays.
func TestCleanDir(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	deep := filepath.Join(dir, "a/b/c")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(deep, "file"), filepath.Join(other, "file")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "a/b"), 0); err != nil {
		t.Fatal(err)
	}
	if err := vmm.CleanDir(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(other, "file")); err != nil {
		t.Errorf("what a link pointed to: %v", err)
	}
	if err := vmm.CleanDir(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there was cleaned")
	}
}

// A process that has ended, but of whose end nobody has taken note, is no
// reason to wait.
func TestZombieHasEnded(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := vmm.IdentifyProcess(cmd.Process.Pid)
	in.Close()
	io.Copy(io.Discard, out) // ends with the process, which stays a zombie
	if err := (vmm.Processes{Supervisor: p, Hypervisor: p}).Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() > 0 {
		t.Error(err)
	}
}
