package concierge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

type readerAt = io.ReaderAt

// checkQcow2 refuses what is no qcow2 image and images that refer to other
// files, by which a caller would reach any file that the hypervisor can open
// (header layout: QEMU's docs/interop/qcow2).
func checkQcow2(f readerAt) error {
	var h [104]byte
	n, err := f.ReadAt(h[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n < 72 || string(h[:4]) != "QFI\xfb" {
		return errors.New("it is not a qcow2 image")
	}
	switch version := binary.BigEndian.Uint32(h[4:]); version {
	case 2:
	case 3:
		if n < len(h) {
			return errors.New("its qcow2 header is cut off")
		}
		const externalData = 1 << 2
		if binary.BigEndian.Uint64(h[72:])&externalData != 0 {
			return errors.New("it keeps its data in another file, which is refused")
		}
	default:
		return fmt.Errorf("qcow2 version %d is not known", version)
	}
	if binary.BigEndian.Uint64(h[8:]) != 0 || binary.BigEndian.Uint32(h[16:]) != 0 {
		return errors.New("it has a backing file, which is refused")
	}
	return nil
}

// qcow2Size is how large the disk in a qcow2 image is, in bytes.
func qcow2Size(f readerAt) (int64, error) {
	if err := checkQcow2(f); err != nil {
		return 0, err
	}
	var size [8]byte
	if _, err := f.ReadAt(size[:], 24); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint64(size[:])
	if n > 1<<62 {
		return 0, fmt.Errorf("its qcow2 header says %d bytes", n)
	}
	return int64(n), nil
}
