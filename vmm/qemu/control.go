package qemu

import (
	"context"
	"fmt"

	"github.com/auberge-vm/auberge/vmm"
)

var (
	_ vmm.Pauser      = (*Monitor)(nil)
	_ vmm.DiskResizer = (*Monitor)(nil)
)

// Pause implements vmm.Pauser.
func (m *Monitor) Pause(ctx context.Context) error { return m.Execute(ctx, "stop", nil, nil) }

// Resume implements vmm.Pauser.
func (m *Monitor) Resume(ctx context.Context) error { return m.Execute(ctx, "cont", nil, nil) }

// ResizeDisk implements vmm.DiskResizer. QEMU changes the image's file too.
func (m *Monitor) ResizeDisk(ctx context.Context, disk int, size int64) error {
	return m.Execute(ctx, "block_resize", object{"node-name": diskNode(disk), "size": size}, nil)
}

// diskNode is the name of a disk's block device inside QEMU.
func diskNode(disk int) string { return fmt.Sprintf("disk%d", disk) }
