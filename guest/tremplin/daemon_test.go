package tremplin

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"golang.org/x/sys/unix"
)

// slowIncusd stands for an incusd that runs and does not answer. It writes its
// pid into a file each time it starts.
func slowIncusd(t *testing.T) (d *daemon, starts func() []int) {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Incusd: filepath.Join(dir, "incusd"), IncusDir: filepath.Join(dir, "incus")}
	log := filepath.Join(dir, "starts")
	fifo := filepath.Join(dir, "fifo")
	// Until its sleep has become one it looks like another incusd.
	script := "#!/bin/sh\ntrap 'exit 0' PWR TERM\nsleep 3600 &\nuntil read name </proc/$!/comm && [ $name = sleep ]; do :; done\n" +
		"echo $$ >>" + log + "\necho $$ >" + fifo + "\nwhile :; do wait $!; done\n"
	if err := os.WriteFile(cfg.Incusd, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	starts = func() (pids []int) {
		data, _ := os.ReadFile(log)
		for word := range strings.FieldsSeq(string(data)) {
			pid, _ := strconv.Atoi(word)
			pids = append(pids, pid)
		}
		return pids
	}
	t.Cleanup(func() {
		for _, pid := range starts() {
			// Its own session is its group.
			syscall.Kill(-pid, syscall.SIGKILL)
		}
	})
	client := incus.New(cfg.socket())
	t.Cleanup(client.Close)
	return &daemon{cfg: cfg, log: quiet(), client: client}, starts
}

// begun waits until an incusd has started.
func begun(t *testing.T, d *daemon) {
	t.Helper()
	f, err := os.Open(filepath.Join(filepath.Dir(d.cfg.Incusd), "fifo"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := bufio.NewReader(f).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
}

// An incusd whose tremplin was killed before it answered is not started a
// second time, and ends with the VM.
func TestAnIncusdThatDoesNotAnswerYetIsTakenOver(t *testing.T) {
	d, starts := slowIncusd(t)
	orphan := exec.Command(d.cfg.Incusd, incusdArgs...)
	orphan.Env = []string{"PATH=/usr/bin:/bin", "INCUS_DIR=" + d.cfg.IncusDir}
	orphan.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	begun(t, d)
	if pid := d.leftBehind(); pid != orphan.Process.Pid {
		t.Errorf("found %d instead of %d", pid, orphan.Process.Pid)
	}
	p, err := d.find(t.Context())
	if err != nil || p == nil || p.pid != orphan.Process.Pid {
		t.Fatalf("it was not taken over: %v, %v", p, err)
	}
	// A shutdown that comes before anybody asked for Incus.
	d.close()
	d.stop(powerOffSignal, stopGrace)
	if err := <-ended; err != nil {
		t.Error("it was not told to end:", err)
	}
	<-p.done
	if n := len(starts()); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	if pid := d.leftBehind(); pid != 0 {
		t.Errorf("%d is no incusd of ours", pid)
	}
}

// Incus by itself asks nobody for anything.
func TestIncusdIsToldToStayAtHome(t *testing.T) {
	d, _ := slowIncusd(t)
	p, err := d.launch()
	if err != nil {
		t.Fatal(err)
	}
	begun(t, d)
	env, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains("\x00"+string(env), "\x00INCUS_SKIP_INSTANCE_TYPES=true\x00") {
		t.Errorf("it runs with %q", env)
	}
	if err := syscall.Kill(-p.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done
}

// The end of everything does not start an incusd, while one is looked for.
func TestNoIncusdIsStartedAtTheEnd(t *testing.T) {
	d, starts := slowIncusd(t)
	if err := os.MkdirAll(d.cfg.IncusDir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", d.cfg.socket()) // and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	k := &keeping{end: cancel, done: make(chan struct{})}
	d.keeping = k
	go d.keep(ctx, k)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d.close()
	d.stop(powerOffSignal, stopGrace)
	if p := k.current(); p != nil || len(starts()) != 0 {
		t.Errorf("an incusd was started at the end: %v", starts())
	}
}
