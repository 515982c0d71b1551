package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/guest/garcon"
	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	"github.com/auberge-vm/auberge/guest/garcon/sftp"
	"github.com/auberge-vm/auberge/guest/garcon/shells"
	"github.com/auberge-vm/auberge/vsock"
)

// serverOptions are the flags of garcon --server.
type serverOptions struct {
	anyUser   bool
	noStartup bool
}

func (o *serverOptions) add(f *pflag.FlagSet) {
	f.BoolVar(&o.anyUser, "allow_any_user", false, "run as another user than the container's, uid 1000")
	f.BoolVar(&o.noStartup, "no_startup_notify", false, "start applications without startup notification")
}

func (o *serverOptions) serve(ctx context.Context) error {
	user, err := session.Current(o.anyUser)
	if err != nil {
		return err
	}
	// systemd's journal has the time.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	reserved := reservedOnly("/proc/cmdline")
	return garcon.Run(ctx, garcon.Config{
		User:      user,
		Environ:   os.Environ(),
		TokenPath: hostcalls.TokenPath,
		Dial:      hostcalls.DialHost,
		Listen:    func(port uint32) (net.Listener, error) { return vsock.ListenGuest(port, reserved) },
		VshdPath:  shells.VshdPath,
		SFTPPath:  sftp.ServerPath,
		Packages:  packagekit.NewClient(),
		Parts:     o.parts,
		Status: func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				log.Warn("systemd was not told how this service is", "err", err)
			}
		},
		Log: log,
	})
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// reservedOnly says whether any user of the host can dial us, as the VM's
// kernel parameters tell, which a container sees too.
func reservedOnly(cmdline string) bool {
	line, err := os.ReadFile(cmdline)
	if err != nil {
		return true // rather nobody than anybody
	}
	for _, word := range strings.Fields(string(line)) {
		if word == "auberge.vsock=kernel" {
			return true
		}
	}
	return false
}
