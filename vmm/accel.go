package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/renameio/v2"
)

// An AccelChoice is an accelerator and, when it is emulation, why KVM is not
// used.
type AccelChoice struct {
	Accel Accel  `json:"accel"`
	Why   string `json:"why,omitempty"`
	// Boot is the boot of the host for which the choice holds.
	Boot string `json:"boot"`
}

// ProbeAccel finds out whether KVM runs guests for the user under which VMs
// run, by starting one with the given kernel, and keeps the answer in the
// file cache until the host boots again.
func (l *Launcher) ProbeAccel(ctx context.Context, kernel, cache string) (AccelChoice, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return AccelChoice{}, fmt.Errorf("probe the accelerator: %w", err)
	}
	id := strings.TrimSpace(string(boot))
	if b, err := os.ReadFile(cache); err == nil {
		var c AccelChoice
		if json.Unmarshal(b, &c) == nil && c.Boot == id && (c.Accel == AccelKVM || c.Accel == AccelTCG) {
			return c, nil
		}
	}
	probe := l.probe
	if l.Units != nil {
		probe = l.probeUnit
	}
	c, err := probe(ctx, kernel)
	if err != nil {
		return AccelChoice{}, fmt.Errorf("probe the accelerator: %w", err)
	}
	c.Boot = id
	b, err := json.Marshal(c)
	if err != nil {
		return AccelChoice{}, err
	}
	// Without the cache the next start probes again; no reason to fail.
	_ = renameio.WriteFile(cache, b, 0o600)
	return c, nil
}

func (l *Launcher) probe(ctx context.Context, kernel string) (AccelChoice, error) {
	cmd := exec.Command(l.Program, append(append([]string{"probe"}, l.Args...), "--", kernel)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := l.start(cmd); err != nil {
		return AccelChoice{}, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return AccelChoice{}, fmt.Errorf("%w: %s", err, LastLines(errs.Bytes(), 3))
	}
	word, why, _ := strings.Cut(out.String(), "\n")
	switch Accel(word) {
	case AccelKVM, AccelTCG:
		return AccelChoice{Accel: Accel(word), Why: strings.TrimSpace(why)}, nil
	}
	return AccelChoice{}, fmt.Errorf("%s answered %q", l.Program, word)
}

func (l *Launcher) start(cmd *exec.Cmd) error {
	if l.Start != nil {
		return l.Start(cmd)
	}
	return cmd.Start()
}
