package apps

import (
	"context"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

const (
	// ownerTime is what one question may take, ownersTime what all of a list
	// may: after that it goes out as it is.
	ownerTime  = 30 * time.Second
	ownersTime = 90 * time.Second
	// ownerFailures in a row are enough.
	ownerFailures = 3
	maxPackageID  = 1024
)

// owners knows the packages of .desktop files that have not changed since they
// were asked for.
type owners struct {
	log  *slog.Logger
	ask  Owner
	home string
	// known is by path. Only one list at a time is filled in.
	known map[string]owned
}

type owned struct {
	inode   inode
	size    int64
	changed time.Time
	id      string
}

func newOwners(log *slog.Logger, ask Owner, home string) *owners {
	return &owners{log: log, ask: ask, home: strings.TrimSuffix(home, "/") + "/", known: map[string]owned{}}
}

// fill puts the packages into a list, asking for one after the other, and
// tells whether some are still to be asked for.
func (o *owners) fill(ctx context.Context, list []*pb.Application, files map[string]file) (left bool) {
	if o.ask == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, ownersTime)
	defer cancel()
	known := map[string]owned{}
	failures := 0
	for _, a := range list {
		f := files[a.DesktopFileId]
		// What a user made belongs to no package.
		if strings.HasPrefix(f.path, o.home) {
			continue
		}
		now := owned{inode: inodeOf(f.info), size: f.info.Size(), changed: f.info.ModTime()}
		had, ok := o.known[f.path]
		if now.id = had.id; ok && had == now {
			a.PackageId = now.id
			known[f.path] = now
			continue
		}
		if failures >= ownerFailures || ctx.Err() != nil {
			left = true
			continue
		}
		id, err := o.one(ctx, f.path)
		if err != nil {
			failures++
			left = true
			o.log.Warn("the package of an application is not known", "file", f.path, "err", err)
			continue
		}
		failures = 0
		now.id = id
		a.PackageId = id
		known[f.path] = now
	}
	o.known = known
	return left
}

func (o *owners) one(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, ownerTime)
	defer cancel()
	id, err := o.ask(ctx, path)
	if err != nil || len(id) > maxPackageID || !utf8.ValidString(id) {
		return "", err
	}
	return id, nil
}
