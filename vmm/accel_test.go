package vmm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/vmm"
)

// prober is a launcher whose program is a shell script, and a count of how
// often it ran.
func prober(t *testing.T, script string) (l *vmm.Launcher, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "auberge-vm"), filepath.Join(dir, "runs")
	text := fmt.Sprintf("#!/bin/sh\necho run >> %s\n%s\n", log, script)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return &vmm.Launcher{Program: path}, func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "run")
	}
}

func TestProbeAccel(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		want   vmm.AccelChoice
		err    string
	}{
		"KVM":             {script: "echo kvm", want: vmm.AccelChoice{Accel: vmm.AccelKVM}},
		"emulation":       {script: "echo tcg; echo no /dev/kvm", want: vmm.AccelChoice{Accel: vmm.AccelTCG, Why: "no /dev/kvm"}},
		"nothing":         {script: "true", err: "answered"},
		"something else":  {script: "echo xen", err: `"xen"`},
		"a failure":       {script: "echo out of order >&2; exit 1", err: "out of order"},
		"what is no word": {script: "printf 'kvm '", err: `"kvm "`},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := prober(t, test.script)
			got, err := l.ProbeAccel(t.Context(), "/boot/vmlinux", filepath.Join(t.TempDir(), "accel.json"))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%+v, %v; want an error with %q", got, err, test.err)
				}
				return
			}
			got.Boot = ""
			if err != nil || got != test.want {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
		})
	}
	missing := &vmm.Launcher{Program: "/nowhere/auberge-vm"}
	if _, err := missing.ProbeAccel(t.Context(), "/boot/vmlinux", filepath.Join(t.TempDir(), "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the program: %v", err)
	}
}

// The answer holds until the host boots again.
func TestProbeAccelRemembers(t *testing.T) {
	l, runs := prober(t, "echo tcg")
	cache := filepath.Join(t.TempDir(), "accel.json")
	probe := func() vmm.AccelChoice {
		t.Helper()
		c, err := l.ProbeAccel(t.Context(), "/boot/vmlinux", cache)
		if err != nil || c.Accel != vmm.AccelTCG {
			t.Fatalf("%+v, %v", c, err)
		}
		return c
	}
	first := probe()
	if again := probe(); again != first || runs() != 1 {
		t.Errorf("the second time: %+v after %d runs", again, runs())
	}
	for i, text := range []string{"", "garbage", `{"accel":"kvm","boot":"another"}`, `{"accel":"xen","boot":"` + first.Boot + `"}`} {
		if err := os.WriteFile(cache, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if probe(); runs() != i+2 {
			t.Errorf("with %q in the cache: %d runs", text, runs())
		}
	}
	var stored vmm.AccelChoice
	if b, err := os.ReadFile(cache); err != nil || json.Unmarshal(b, &stored) != nil || stored != first {
		t.Errorf("the cache holds %+v, %v", stored, err)
	}
	// No place for it costs another probe and nothing else.
	cache = filepath.Join(t.TempDir(), "none", "accel.json")
	probe()
}

// The probe is made with the same programs as a VM.
func TestProbeAccelPassesArguments(t *testing.T) {
	l, _ := prober(t, `echo tcg; echo "$@"`)
	l.Args = []string{"--qemu", "/opt/qemu"}
	c, err := l.ProbeAccel(t.Context(), "-kernel", filepath.Join(t.TempDir(), "x"))
	if err != nil || c.Why != "probe --qemu /opt/qemu -- -kernel" {
		t.Errorf("called with %q, %v", c.Why, err)
	}
	started := false
	l.Start = func(cmd *exec.Cmd) error {
		started = true
		return cmd.Start()
	}
	if _, err := l.ProbeAccel(t.Context(), "/x", filepath.Join(t.TempDir(), "x")); err != nil || !started {
		t.Errorf("started as the VMs' user: %t, %v", started, err)
	}
}

func TestProbeAccelGivesUp(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	l, _ := prober(t, "mkfifo "+ready+"; exec sleep 1000 > "+ready)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.ProbeAccel(ctx, "/x", filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("a probe that was given up has an answer")
	}
}
