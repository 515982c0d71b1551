package host

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Change says what may have become different.
type Change int

const (
	TimezoneChanged Change = iota
	DNSChanged
	// NetworkChanged: the machine reaches the world by another way.
	NetworkChanged
	// UsersChanged: accounts were added, removed or changed.
	UsersChanged
)

// settle is how long files are left alone after a change: programs write them
// in several steps.
const settle = 100 * time.Millisecond

// A Watcher notices changes from the moment it is made.
type Watcher struct {
	host     Host
	log      *slog.Logger
	files    *fsnotify.Watcher
	routes   <-chan netlink.RouteUpdate
	stop     func()
	deaf     bool // routes has ended by itself
	zone     string
	dns      DNS
	gateways string
	accounts fileMark
}

// Watch begins to watch. What cannot be watched is logged and left out.
func (h Host) Watch(log *slog.Logger) (*Watcher, error) {
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the host's time zone and resolver: %w", err)
	}
	w := &Watcher{host: h, log: log, files: files}
	for _, f := range []string{h.localtime(), h.resolver(), resolvedUpstream, h.passwd()} {
		if err := files.Add(filepath.Dir(f)); err != nil && f != resolvedUpstream {
			log.Warn("changes of a file will not be noticed", "file", f, "err", err)
		}
	}
	w.followResolver()
	w.routes, w.stop = watchRoutes(log)
	w.accounts = markOf(h.passwd())
	w.zone, _ = h.Timezone()
	w.dns, _ = h.DNS()
	if w.gateways, err = defaultGateways(); err != nil {
		log.Warn("read the host's routes", "err", err)
	}
	return w, nil
}

// A fileMark tells versions of a file apart.
type fileMark struct {
	inode        uint64
	size         int64
	mtime, ctime unix.Timespec
}

func markOf(path string) fileMark {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileMark{}
	}
	return fileMark{st.Ino, st.Size, st.Mtim, st.Ctim}
}

// maxLinks is how many links in a row are followed.
const maxLinks = 8

// followResolver watches what the resolver's configuration is a link to. Files
// are replaced by renaming, which only their directory tells.
func (w *Watcher) followResolver() {
	path := w.host.resolver()
	for range maxLinks {
		next, err := os.Readlink(path)
		if err != nil {
			return
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(path), next)
		}
		path = next
		if err := w.files.Add(filepath.Dir(path)); err != nil {
			w.log.Warn("changes of a file will not be noticed", "file", path, "err", err)
		}
	}
}

// Run calls changed for each change until ctx is done, and closes the watcher.
// Values are compared, so that a file written anew with the same content is no
// change.
func (w *Watcher) Run(ctx context.Context, changed func(Change)) {
	defer w.files.Close()
	defer func() { w.stop() }()
	settled := time.NewTimer(settle)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.files.Events:
			settled.Reset(settle)
		case err := <-w.files.Errors:
			// Events were lost: look.
			w.log.Warn("watch the host's files", "err", err)
			settled.Reset(settle)
		case _, ok := <-w.routes:
			if !ok {
				// More came at once than anybody read. Not again at once.
				w.stop()
				w.routes, w.stop, w.deaf = nil, func() {}, true
			}
			settled.Reset(settle)
		case <-settled.C:
			w.look(changed)
		}
	}
}

// look compares what there is with what there was.
func (w *Watcher) look(changed func(Change)) {
	w.followResolver() // it may be another link now
	if w.deaf {
		w.deaf = false
		w.routes, w.stop = watchRoutes(w.log)
	}
	if z, err := w.host.Timezone(); err == nil && z != w.zone {
		w.zone = z
		changed(TimezoneChanged)
	}
	if d, err := w.host.DNS(); err == nil && !d.Equal(w.dns) {
		w.dns = d
		changed(DNSChanged)
	}
	if m := markOf(w.host.passwd()); m != w.accounts {
		w.accounts = m
		changed(UsersChanged)
	}
	if g, err := defaultGateways(); err != nil {
		// Most likely they are being changed, and then there is more to come.
		w.log.Debug("read the host's routes", "err", err)
	} else if g != w.gateways {
		w.gateways = g
		changed(NetworkChanged)
	}
}

// watchRoutes wakes its reader when a route or an address changes.
func watchRoutes(log *slog.Logger) (<-chan netlink.RouteUpdate, func()) {
	done := make(chan struct{})
	updates := make(chan netlink.RouteUpdate, 16)
	err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{
		ErrorCallback: func(err error) { log.Debug("watch the host's routes", "err", err) },
	})
	if err != nil {
		log.Warn("changes of the host's network will not be noticed", "err", err)
		return nil, func() {}
	}
	return updates, func() {
		close(done)
		// The sender ends once it notices, and must not wait for a reader.
		for range updates {
		}
	}
}

// defaultGateways names the ways by which the machine reaches the world.
func defaultGateways() (string, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", err
	}
	ways := ""
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		ways += fmt.Sprintf("%v by %d metric %d; ", r.Gw, r.LinkIndex, r.Priority)
	}
	return ways, nil
}

func (c Change) String() string {
	switch c {
	case TimezoneChanged:
		return "time zone"
	case DNSChanged:
		return "name servers"
	case NetworkChanged:
		return "network"
	case UsersChanged:
		return "users"
	}
	return fmt.Sprintf("change %d", int(c))
}
