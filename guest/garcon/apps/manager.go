package apps

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/garcon/icons"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// coalesce is how long changes are gathered, as on ChromeOS.
const coalesce = 3 * time.Second

// A Host is told of applications.
type Host interface {
	UpdateApplicationList(context.Context, *pb.UpdateApplicationListRequest) error
	PendingUpdateApplicationListCalls(context.Context, *pb.PendingAppListUpdateCount) error
	UpdateMimeTypes(context.Context, *pb.UpdateMimeTypesRequest) error
	OpenTerminal(context.Context, *pb.OpenTerminalRequest) error
}

// An Owner returns the id of the package that a file belongs to, "" if it
// belongs to none.
type Owner func(ctx context.Context, path string) (string, error)

// Config is what a Manager needs.
type Config struct {
	Log   *slog.Logger
	Host  Host
	Paths Paths
	// Owner may be nil: then no application has a package.
	Owner Owner
	// Environ is the environment of what is started.
	Environ []string
	// NoStartupNotify starts applications without DESKTOP_STARTUP_ID.
	NoStartupNotify bool
	// Coalesce is how long changes are gathered; 0 is three seconds.
	Coalesce time.Duration
	// Retry is when the host is told again what it did not take, the first
	// time; 0 is five seconds.
	Retry time.Duration
	// Pixmaps is where icons are that belong to no theme, if not in
	// /usr/share/pixmaps.
	Pixmaps string
}

// A Manager owns the list of applications and the programs that were started.
type Manager struct {
	log             *slog.Logger
	host            Host
	paths           Paths
	environ         []string
	noStartupNotify bool
	coalesce, retry time.Duration

	finder   *icons.Finder
	children *children
	owners   *owners
	refresh  chan struct{}
	lists    lists

	toldMu sync.Mutex
	told   struct{ apps, mime int } // how many, for Describe
}

// New returns a Manager that does nothing by itself until Run.
func New(c Config) *Manager {
	return &Manager{
		log: c.Log, host: c.Host, paths: c.Paths, environ: c.Environ, noStartupNotify: c.NoStartupNotify,
		coalesce: cmp.Or(c.Coalesce, coalesce), retry: cmp.Or(c.Retry, retryMin),
		finder: icons.NewFinder(icons.Config{
			Home: c.Paths.Home, ConfigHome: c.Paths.ConfigHome, DataDirs: c.Paths.DataDirs, Pixmaps: c.Pixmaps,
		}),
		children: newChildren(c.Log),
		owners:   newOwners(c.Log, c.Owner, c.Paths.Home),
		refresh:  make(chan struct{}, 1),
	}
}

// Refresh tells the host all of it again, soon: it may have forgotten.
func (m *Manager) Refresh() {
	select {
	case m.refresh <- struct{}{}:
	default:
	}
}

// Run keeps the host up to date, from now on until ctx is done. It is called
// once.
func (m *Manager) Run(ctx context.Context) error {
	w, err := newWatch(m.log, m.paths)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	// The watch is closed last: a list may still be at it.
	defer w.close()
	defer parts.Wait()
	defer cancel()
	pending := newPending(m.log, m.host)
	parts.Go(func() { m.children.run(ctx) })
	parts.Go(func() { pending.run(ctx) })
	return m.follow(ctx, w, pending)
}
