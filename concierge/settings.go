package concierge

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/crash"
)

// Settings are what an owner has chosen for a VM; a nil field is not chosen.
// They take effect when the VM is next started.
type Settings struct {
	MemoryMiB *uint64      `json:"memory_mib,omitempty"`
	CPUs      *uint32      `json:"cpus,omitempty"`
	Network   *NetworkMode `json:"network,omitempty"`
	// UncheckedAgent is for administrators: see AllowUncheckedAgent.
	UncheckedAgent bool `json:"unchecked_agent,omitempty"`
}

const (
	minMemoryMiB     = 128
	defaultMemoryMiB = 4096 // unless a quarter of the host's memory is less
)

// ConfigureVm stores settings of a VM, which need not run or have a disk yet.
// Fields that are nil stay as they are.
func (s *Service) ConfigureVm(ctx context.Context, sub policy.Subject, name string, change Settings) error {
	if err := policy.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := change.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s.changeSettings(ctx, keyOf(sub.Owner, name), func(set *Settings) {
		if change.MemoryMiB != nil {
			set.MemoryMiB = change.MemoryMiB
		}
		if change.CPUs != nil {
			set.CPUs = change.CPUs
		}
		if change.Network != nil {
			set.Network = change.Network
		}
	})
}

// AllowUncheckedAgent lets a VM start with a kernel or a system of its owner's
// where vsock is the host kernel's, or forbids it again. Every user of the
// host can dial such a guest, and only our agents tell them from the services.
// Whoever calls it has the administrator's right.
func (s *Service) AllowUncheckedAgent(ctx context.Context, sub policy.Subject, name string, allow bool) error {
	if err := policy.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s.changeSettings(ctx, keyOf(sub.Owner, name), func(set *Settings) { set.UncheckedAgent = allow })
}

// changeSettings stores settings of a VM anew.
func (s *Service) changeSettings(ctx context.Context, k key, change func(*Settings)) error {
	name := k.name
	select {
	case s.settingsTurn <- struct{}{}:
		defer func() { <-s.settingsTurn }()
	case <-ctx.Done():
		return fmt.Errorf("store the settings of %q: %w", name, context.Cause(ctx))
	}
	set, err := s.settings(k)
	if err != nil {
		return err
	}
	change(&set)
	b, err := json.Marshal(set)
	if err != nil {
		return err
	}
	path := s.settingsPath(k)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("store the settings of %q: %w", name, err)
	}
	crash.At(crash.SettingsDirMade)
	if err := storeFile(path, b, crash.SettingsWritten, crash.SettingsStored); err != nil {
		return fmt.Errorf("store the settings of %q: %w", name, err)
	}
	return nil
}

// GetVmSettings returns what ConfigureVm has stored.
func (s *Service) GetVmSettings(sub policy.Subject, name string) (Settings, error) {
	if err := policy.CheckName(name); err != nil {
		return Settings{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s.settings(keyOf(sub.Owner, name))
}

func (c Settings) check() error {
	if c.MemoryMiB != nil {
		total, _ := hostMemory()
		if *c.MemoryMiB < minMemoryMiB {
			return fmt.Errorf("memory of %d MiB is less than %d MiB", *c.MemoryMiB, minMemoryMiB)
		}
		if *c.MemoryMiB > total>>20 {
			return fmt.Errorf("memory of %d MiB is more than the host has (%d MiB)", *c.MemoryMiB, total>>20)
		}
	}
	if c.CPUs != nil {
		if err := checkCPUs(*c.CPUs); err != nil {
			return err
		}
	}
	if c.Network != nil && !c.Network.Valid() {
		return fmt.Errorf("network %q is none of none, restricted, user, tap", *c.Network)
	}
	return nil
}

func checkCPUs(n uint32) error {
	if n < 1 || n > hostCPUs() {
		return fmt.Errorf("%d CPUs: this host has 1 to %d for a VM", n, hostCPUs())
	}
	return nil
}

// hostCPUs is how many CPUs a VM can have on this host.
func hostCPUs() uint32 { return uint32(min(runtime.NumCPU(), vmm.MaxCPUs)) }

// settings reads what is stored for a VM.
func (s *Service) settings(k key) (Settings, error) {
	var set Settings
	b, err := os.ReadFile(s.settingsPath(k))
	if errors.Is(err, fs.ErrNotExist) {
		return set, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &set)
	}
	if err != nil {
		return set, fmt.Errorf("read the settings of VM %q: %w", k.name, err)
	}
	return set, nil
}

func (s *Service) settingsPath(k key) string {
	return filepath.Join(s.cfg.StateDir, "settings", ownerDir(k.uid, k.label), fileName(k.name)+".json")
}

// ownerDir is the directory of an owner's label beneath a store. The "@"
// keeps labels apart from file names, in which it does not occur.
func ownerDir(uid uint32, label string) string {
	d := fmt.Sprint(uid)
	if label != "" {
		d = filepath.Join(d, "@"+label)
	}
	return d
}

// fileName is a VM's name as a file name, as ChromeOS writes it: URL-safe
// base64 with padding.
func fileName(name string) string { return base64.URLEncoding.EncodeToString([]byte(name)) }

// vmName reads a file name back.
func vmName(file string) (string, bool) {
	b, err := base64.URLEncoding.DecodeString(file)
	name := string(b)
	// The decoder takes other spellings too.
	if err != nil || policy.CheckName(name) != nil || fileName(name) != file {
		return "", false
	}
	return name, true
}

// hostMemory returns the host's memory and how much of it can be given away,
// in bytes.
func hostMemory() (total, available uint64) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, 0
	}
	unit := uint64(si.Unit)
	total = uint64(si.Totalram) * unit
	available = uint64(si.Freeram+si.Bufferram) * unit
	// What the page cache would give back only /proc/meminfo knows.
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return total, available
	}
	defer f.Close()
	for {
		var field, rest string
		var kib uint64
		if _, err := fmt.Fscanf(f, "%s %d %s\n", &field, &kib, &rest); err != nil {
			return total, available
		}
		if field == "MemAvailable:" {
			return total, kib << 10
		}
	}
}
