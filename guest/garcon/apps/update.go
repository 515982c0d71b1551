package apps

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guest/garcon/mime"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// maxWarnings bounds what one update writes into the log.
const maxWarnings = 20

// lists are what the host was told last.
type lists struct {
	told bool
	apps [sha256.Size]byte
	mime map[string]string
}

// A result is what an update leaves to do.
type result struct {
	err   error
	left  change // what the host did not take
	asked bool   // packages are to be asked for again
}

// update tells the host what has changed. One runs at a time.
func (m *Manager) update(ctx context.Context, w *watch, c change, forced bool) result {
	if forced {
		m.lists = lists{}
	}
	t := w.sync()
	var r result
	if c.mime {
		if err := m.updateMime(ctx); err != nil {
			r.err, r.left.mime = err, true
		}
	}
	if c.apps {
		asked, err := m.updateApps(ctx, t)
		r.asked = asked
		if err != nil {
			r.err, r.left.apps = errors.Join(r.err, err), true
		}
	}
	return r
}

func (m *Manager) updateMime(ctx context.Context) error {
	types, err := mime.Load(m.paths.DataDirs)
	if err != nil {
		m.log.Warn("a cache of MIME types is left out", "err", err)
	}
	if m.lists.mime != nil && maps.Equal(types, m.lists.mime) {
		return nil
	}
	if err := m.host.UpdateMimeTypes(ctx, &pb.UpdateMimeTypesRequest{MimeTypeMappings: types}); err != nil {
		return err
	}
	m.lists.mime = types
	m.toldMu.Lock()
	m.told.mime = len(types)
	m.toldMu.Unlock()
	m.log.Info("the host knows the MIME types", "extensions", len(types))
	return nil
}

// updateApps also tells whether packages are to be asked for again.
func (m *Manager) updateApps(ctx context.Context, t *tree) (asked bool, err error) {
	warnings := 0
	list, files := gather(t, session.Getenv(m.environ, "PATH"), func(msg string, args ...any) {
		if warnings++; warnings <= maxWarnings {
			m.log.Warn(msg, args...)
		}
	})
	asked = m.owners.fill(ctx, list, files)
	if err := ctx.Err(); err != nil {
		return asked, err
	}
	// The ids of packages came after the cut.
	list, lost := fitAll(list)
	if lost > 0 {
		m.log.Warn("there are more applications than the host is told of", "told", len(list))
	}
	req := &pb.UpdateApplicationListRequest{Application: list}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return asked, err
	}
	sum := sha256.Sum256(text)
	if m.lists.told && sum == m.lists.apps {
		return asked, nil
	}
	if err := m.host.UpdateApplicationList(ctx, req); err != nil {
		return asked, err
	}
	m.lists.told, m.lists.apps = true, sum
	m.toldMu.Lock()
	m.told.apps = len(list)
	m.toldMu.Unlock()
	m.log.Info("the host knows the applications", "count", len(list))
	return asked, nil
}
