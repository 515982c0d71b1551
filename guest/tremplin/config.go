package tremplin

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Config says where things are in the VM.
type Config struct {
	IncusDir     string        // Incus' state
	Incusd       string        // the program
	SettingsPath string        // what StartTermina left
	ToolsDir     string        // the tools disk
	TransferDir  string        // what may be exported to and imported from
	TokenDir     string        // containers' tokens
	ResolvPath   string        // the VM's resolvers
	Milestone    int           // stands for %d in an image server's URL
	DownloadIdle time.Duration // a download without a byte for as long is given up
	Heartbeat    time.Duration // between two notices that a start is under way
}

// DefaultConfig is that of a VM.
func DefaultConfig() Config {
	return Config{
		IncusDir:     "/mnt/stateful/incus",
		Incusd:       "/usr/libexec/incus/incusd",
		SettingsPath: "/run/auberge/termina.env",
		ToolsDir:     "/opt/google/cros-containers",
		TransferDir:  "/mnt/stateful/transfer",
		TokenDir:     "/run/tokens",
		ResolvPath:   "/run/resolv.conf",
		DownloadIdle: time.Minute,
		Heartbeat:    30 * time.Second,
	}
}

// Names of what the containers share.
const (
	poolName    = "default"
	bridgeName  = "incusbr0"
	profileName = "default"
)

func (c Config) socket() string  { return filepath.Join(c.IncusDir, "unix.socket") }
func (c Config) poolDir() string { return filepath.Join(c.IncusDir, "storage-pools", poolName) }

// containerDir is where the pool keeps a container's files.
func (c Config) containerDir(name string) string {
	return filepath.Join(c.poolDir(), "containers", name)
}

func (c Config) snapshotDir(name, snapshot string) string {
	return filepath.Join(c.poolDir(), "containers-snapshots", name, snapshot)
}

// defaultSubnet is the containers' network where the host gave none.
var defaultSubnet = netip.MustParsePrefix("100.115.92.192/28")

// settings are what the host told StartTermina.
type settings struct {
	subnet     netip.Prefix
	privileged bool // containers may be
}

// maxSettings bounds the file of settings.
const maxSettings = 64 << 10

func readSettings(path string) (settings, error) {
	s := settings{subnet: defaultSubnet}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(data[:min(len(data), maxSettings)])) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "LXD_IPV4_SUBNET":
			p, err := netip.ParsePrefix(value)
			if err != nil || !p.Addr().Is4() || p.Bits() > 30 {
				return s, fmt.Errorf("%s: the containers' network %q is not of the form a.b.c.d/prefix", path, value)
			}
			s.subnet = p
		case "ALLOW_PRIVILEGED_CONTAINERS":
			s.privileged = value == "true"
		}
	}
	return s, nil
}

// bridgeAddress is the first address of the containers' network, unless the
// host named another one of it.
func (s settings) bridgeAddress() netip.Prefix {
	a := s.subnet.Addr()
	if a == s.subnet.Masked().Addr() {
		a = a.Next()
	}
	return netip.PrefixFrom(a, s.subnet.Bits())
}
