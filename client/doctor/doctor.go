package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// An Outcome is what a check has found.
type Outcome string

const (
	OK   Outcome = "ok"
	Warn Outcome = "warn" // VMs run, but not as well as they could
	Fail Outcome = "fail" // VMs do not run, or not for this user
)

// A Finding is what a check has found, and what to do about it.
type Finding struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail"`
	// Remedy is empty when nothing is to be done.
	Remedy string `json:"remedy,omitempty"`
}

// A Host is the machine that is looked at.
type Host struct {
	// Root is "/", but in tests.
	Root string
	// UID and User are who asks, Groups the names of the groups of this process.
	UID    int
	User   string
	Groups []string
	// Run returns what a program prints.
	Run func(ctx context.Context, program string, args ...string) (string, error)
	// Free is the free space of a file system in bytes.
	Free func(path string) (uint64, error)
	// Bus is nil when the bus cannot be reached; BusError says why.
	Bus      Bus
	BusError error
}

// A Bus is the bus with the service on it.
type Bus interface {
	// Known says whether a name is there, and whether it can be started.
	Known(ctx context.Context, name string) (owned, activatable bool, err error)
	// Info is what GetServiceInfo answers.
	Info(ctx context.Context) (map[string]any, error)
	// Cicerone is what vm_cicerone's GetServiceInfo answers.
	Cicerone(ctx context.Context) (map[string]any, error)
	// MayUse fails when the caller may not use VMs.
	MayUse(ctx context.Context) error
	// LaunchAllowed says whether VMs may be started on these processors.
	LaunchAllowed(ctx context.Context) (allowed bool, reason string, err error)
}

// ErrDenied is what MayUse wraps when the service says no.
var ErrDenied = errors.New("access denied")

// checkTime bounds one check.
const checkTime = 10 * time.Second

// A check looks at one thing. The service's own words about itself are known
// by then, nil when it gave none.
type check struct {
	name string
	look func(ctx context.Context, h *Host, info info) Finding
}

// checks are in the order in which people read them: what stops everything
// comes first.
var checks = []check{
	{"service", checkService},
	{"rights", checkRights},
	{"polkit", checkPolkit},
	{"accounts", checkAccounts},
	{"kvm", checkKVM},
	{"processor", checkProcessor},
	{"qemu", checkQEMU},
	{"image", checkImage},
	{"vsock", checkVsock},
	{"vsock exposure", checkExposure},
	{"helper", checkHelper},
	{"units", checkUnits},
	{"network", checkNetwork},
	{"containers", checkContainers},
	{"disk space", checkDisk},
	{"runtime space", checkRuntime},
	{"subordinate ids", checkSubIDs},
}

// Examine makes all checks.
func Examine(ctx context.Context, h *Host) []Finding {
	var known info
	if h.Bus != nil {
		ictx, cancel := context.WithTimeout(ctx, checkTime)
		known, _ = h.Bus.Info(ictx) // checkService asks again and says why not
		cancel()
	}
	var all []Finding
	for _, c := range checks {
		cctx, cancel := context.WithTimeout(ctx, checkTime)
		f := c.look(cctx, h, known)
		cancel()
		f.Name = c.name
		all = append(all, f)
	}
	return all
}

// Broken says whether something is broken.
func Broken(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Outcome == Fail })
}

// info is what the service says of itself.
type info map[string]any

func (i info) word(key string) string {
	s, _ := i[key].(string)
	return s
}

func ok(detail string) Finding { return Finding{Outcome: OK, Detail: detail} }
func warn(detail, remedy string) Finding {
	return Finding{Outcome: Warn, Detail: detail, Remedy: remedy}
}
func fail(detail, remedy string) Finding {
	return Finding{Outcome: Fail, Detail: detail, Remedy: remedy}
}

// path is a path of the host's.
func (h *Host) path(p string) string { return filepath.Join(h.Root, p) }

// has says whether something is there; what may not be looked at counts as
// there.
func (h *Host) has(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// read returns a file's text, empty when it cannot be read.
func (h *Host) read(p string) string {
	b, err := os.ReadFile(h.path(p))
	if err != nil {
		return ""
	}
	return string(b)
}

// program finds a program as a service would, and returns its path on the
// host.
func (h *Host) program(name string) (string, bool) {
	if filepath.IsAbs(name) {
		return name, h.executable(name)
	}
	for _, dir := range []string{"/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/libexec", "/usr/lib/qemu", "/bin"} {
		if path := filepath.Join(dir, name); h.executable(path) {
			return path, true
		}
	}
	return "", false
}

func (h *Host) executable(path string) bool {
	fi, err := os.Stat(h.path(path))
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// listed says whether a file like /etc/passwd or /proc/modules has a line for
// a name, with the fields of that line.
func (h *Host) listed(file, name, separator string) ([]string, bool) {
	for line := range strings.Lines(h.read(file)) {
		fields := strings.Split(strings.TrimSpace(line), separator)
		if fields[0] == name {
			return fields, true
		}
	}
	return nil, false
}
