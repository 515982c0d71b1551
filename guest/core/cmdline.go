package core

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// DefaultRootDevice is the disk that holds the root file system unless the
// kernel parameter root says otherwise.
const DefaultRootDevice = "/dev/vda"

// Params are the kernel parameters that guest agents understand.
type Params struct {
	// RootDevice (root=/dev/NAME) holds the root file system.
	RootDevice string
	// WritableRoot (auberge.rootfs=rw) mounts it read-write as it is; the
	// default, ro, puts an overlay in memory above it.
	WritableRoot bool
	// ReservedVsock (auberge.vsock=kernel) says that the host's side of vsock
	// is the kernel's, where any user of the host can dial a guest: agents then
	// accept reserved source ports only. The other value is user, the default.
	ReservedVsock bool
	// ListenPort (maitred.listen_port=N) is the host's port for VmReady;
	// 0 means the contract's own.
	ListenPort uint32
	// Hostname (hostname=NAME) is the guest's name; kernels since 5.19 set it
	// themselves.
	Hostname string
}

// ReadParams parses the parameters of the running kernel; /proc must be there.
func ReadParams() (Params, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Params{}, fmt.Errorf("cannot read the kernel parameters: %w", err)
	}
	return ParseParams(string(line))
}

// ParseParams reads a kernel command line. The last of several values wins, as
// in the kernel; parameters of others are passed over. Params are usable even
// when an error is returned: what was wrong keeps its default.
func ParseParams(line string) (Params, error) {
	p := Params{RootDevice: DefaultRootDevice}
	var errs []error
	for _, word := range splitParams(line) {
		name, value, _ := strings.Cut(word, "=")
		if err := p.set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("kernel parameter %s=%s: %w", name, value, err))
		}
	}
	return p, errors.Join(errs...)
}

func (p *Params) set(name, value string) error {
	switch name {
	case "root":
		if !strings.HasPrefix(value, "/dev/") {
			return errors.New("want a path below /dev")
		}
		p.RootDevice = value
	case "auberge.rootfs":
		return setChoice(&p.WritableRoot, value, "ro", "rw")
	case "auberge.vsock":
		// The host says it first, and what a VM's owner adds does not make
		// other users of the host welcome.
		reserved := p.ReservedVsock
		err := setChoice(&p.ReservedVsock, value, "user", "kernel")
		p.ReservedVsock = p.ReservedVsock || reserved
		return err
	case "maitred.listen_port":
		port, err := strconv.ParseUint(value, 10, 32)
		if err != nil || port == 0 || port == 1<<32-1 {
			return errors.New("want a vsock port, 1 to 4294967294")
		}
		p.ListenPort = uint32(port)
	case "hostname":
		p.Hostname = value
	}
	return nil
}

func setChoice(set *bool, value, no, yes string) error {
	if value != no && value != yes {
		return fmt.Errorf("want %s or %s", no, yes)
	}
	*set = value == yes
	return nil
}

// splitParams cuts a kernel command line into words the way the kernel's
// next_arg does: double quotes hold spaces and are dropped at a value's ends,
// and what follows "--" is for init.
func splitParams(line string) []string {
	var words []string
	inQuote := false
	fields := strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			inQuote = !inQuote
		}
		return !inQuote && (r == ' ' || r == '\t' || r == '\n')
	})
	for _, f := range fields {
		if f == "--" {
			break
		}
		words = append(words, unquote(f))
	}
	return words
}

func unquote(word string) string {
	if len(word) > 1 && strings.HasPrefix(word, `"`) && strings.HasSuffix(word, `"`) {
		return word[1 : len(word)-1]
	}
	name, value, ok := strings.Cut(word, "=")
	if !ok {
		return word
	}
	return name + "=" + strings.TrimSuffix(strings.TrimPrefix(value, `"`), `"`)
}
