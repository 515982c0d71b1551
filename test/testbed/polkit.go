package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// PolkitPolicy is what lets polkit on a bus; a bed that is to have one needs it
// among its Policies.
const PolkitPolicy = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"

const (
	polkitd    = "/usr/lib/polkit-1/polkitd"
	polkitName = "org.freedesktop.PolicyKit1"
)

// A Polkit is the real polkitd with Auberge's actions and rules, and without
// those of the machine. There is no logind, so nobody sits at a seat.
type Polkit struct {
	bed *Bed
	dir string
	cmd *exec.Cmd
}

// StartPolkit starts it with the administrator's own rules, and returns when it
// answers. Close of the bed ends it.
func (b *Bed) StartPolkit(ctx context.Context, rules string) (*Polkit, error) {
	p := &Polkit{bed: b, dir: filepath.Join(b.Dir, "polkit")}
	src, err := sourceDir()
	if err != nil {
		return nil, err
	}
	for _, dir := range []struct{ name, at, files string }{
		{"actions", "/usr/share/polkit-1/actions", "*.policy"},
		{"rules", "/usr/share/polkit-1/rules.d", "*.rules"},
		{"local", "/etc/polkit-1/rules.d", ""},
	} {
		own := filepath.Join(p.dir, dir.name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return nil, err
		}
		var files []string
		if dir.files != "" {
			files, _ = filepath.Glob(filepath.Join(src, "policy/polkit", dir.files))
			if len(files) == 0 {
				return nil, fmt.Errorf("no %s in %s/policy/polkit", dir.files, src)
			}
		}
		for _, f := range files {
			if err := rewrite(f, filepath.Join(own, filepath.Base(f))); err != nil {
				return nil, err
			}
		}
		if err := unix.Mount(own, dir.at, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", dir.at, err)
		}
		b.ends = append(b.ends, func() { unix.Unmount(dir.at, unix.MNT_DETACH) })
	}
	if err := p.Rules(rules); err != nil {
		return nil, err
	}
	return p, p.Start(ctx)
}

// Rules replaces the administrator's own rules; polkit notices by itself.
func (p *Polkit) Rules(text string) error {
	at := filepath.Join(p.dir, "local", "10-local.rules")
	tmp := filepath.Join(p.dir, "10-local.rules")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, at)
}

// Start starts polkitd, again after Stop.
func (p *Polkit) Start(ctx context.Context) error {
	conn, err := p.bed.Dial(ctx, Root)
	if err != nil {
		return err
	}
	defer conn.Close()
	changes := make(chan *dbus.Signal, 10)
	conn.Signal(changes)
	if err := conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, polkitName)); err != nil {
		return err
	}
	p.cmd = exec.Command(polkitd)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "DBUS_SYSTEM_BUS_ADDRESS=" + p.bed.Address, "LANG=C.UTF-8"}
	p.cmd.Stdout, p.cmd.Stderr = p.bed.log, p.bed.log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start polkitd: %w", err)
	}
	done := make(chan struct{})
	cmd := p.cmd
	go func() {
		cmd.Wait()
		close(done)
	}()
	p.bed.ends = append(p.bed.ends, func() {
		cmd.Process.Kill()
		<-done
	})
	for {
		select {
		case s := <-changes:
			if len(s.Body) == 3 && s.Body[2] != "" {
				return nil
			}
		case <-done:
			return fmt.Errorf("polkitd ended at once: %v", cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("wait for polkitd: %w", ctx.Err())
		}
	}
}

// Pause stops polkitd without ending it, Continue lets it go on.
func (p *Polkit) Pause() error    { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *Polkit) Continue() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop kills polkitd.
func (p *Polkit) Stop() error { return p.cmd.Process.Kill() }
