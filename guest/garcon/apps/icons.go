package apps

import (
	"context"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// What a request for icons may ask for.
const (
	defaultSize = 48
	maxSize     = 1024
	maxScale    = 16
	maxIcons    = 4096
	// iconSize is what an icon costs in the response beside its bytes and id.
	iconSize = 24
	// maxIconBytes is what the host takes of an answer, 4 MiB, less some room:
	// more than of what it did not ask for.
	maxIconBytes = 4<<20 - 64<<10
)

// GetIcon returns the icons of applications. Those without one, and those that
// would make the response longer than the host takes, are left out.
func (m *Manager) GetIcon(ctx context.Context, req *pb.IconRequest) (*pb.IconResponse, error) {
	size, scale := defaultSize, 1
	if n := int(req.GetIconSize()); n > 0 {
		size = min(n, maxSize)
	}
	if n := int(req.GetScale()); n > 0 {
		scale = min(n, maxScale)
	}
	resp := &pb.IconResponse{}
	room := maxIconBytes
	asked := map[string]bool{}
	for _, id := range req.GetDesktopFileIds() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if asked[id] || len(asked) >= maxIcons {
			continue
		}
		asked[id] = true
		e, err := desktop.Find(m.paths.applications(), id)
		if err != nil {
			m.log.Debug("no icon", "err", err)
			continue
		}
		pic, err := m.finder.Find(ctx, e.Icon, size, scale)
		if err != nil {
			m.log.Debug("no icon", "id", id, "err", err)
			continue
		}
		cost := len(pic.Data) + len(id) + iconSize
		if cost > room {
			m.log.Info("an icon is left out: the answer would be too long", "id", id, "bytes", len(pic.Data))
			continue
		}
		room -= cost
		icon := &pb.DesktopIcon{DesktopFileId: id, Icon: pic.Data}
		if pic.SVG {
			icon.Format = pb.DesktopIcon_SVG
		}
		resp.DesktopIcons = append(resp.DesktopIcons, icon)
	}
	return resp, nil
}
