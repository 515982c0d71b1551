package vmc

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// parseDisk reads PATH[,OPTION...], what --disk takes.
func parseDisk(spec string) (*pb.DiskImage, error) {
	parts := splitCommas(spec)
	if parts[0] == "" {
		return nil, errors.New("it begins with the path of the image")
	}
	path, err := filepath.Abs(parts[0])
	if err != nil {
		return nil, err
	}
	d := &pb.DiskImage{Path: path}
	if strings.HasSuffix(path, ".qcow2") {
		d.ImageType = pb.DiskImageType_DISK_IMAGE_QCOW2
	}
	for _, option := range parts[1:] {
		key, value, has := strings.Cut(option, "=")
		if err := diskOption(d, key, value, has); err != nil {
			return nil, err
		}
	}
	if (d.Fstype != "" || d.Data != "") && !d.DoMount {
		return nil, errors.New("fstype and data go with mount=/DIR")
	}
	if d.DoMount && d.Fstype == "" {
		return nil, errors.New("mount needs the type of the file system, such as fstype=ext4")
	}
	return d, nil
}

func diskOption(d *pb.DiskImage, key, value string, has bool) error {
	switch key {
	case "writable":
		if has {
			return errors.New("writable takes no value")
		}
	default:
		if has && value == "" {
			return fmt.Errorf("%s has no value", key)
		}
	}
	switch key {
	case "writable":
		d.Writable = true
	case "type":
		switch value {
		case "raw":
			d.ImageType = pb.DiskImageType_DISK_IMAGE_RAW
		case "qcow2":
			d.ImageType = pb.DiskImageType_DISK_IMAGE_QCOW2
		default:
			return fmt.Errorf("there is no type %q: give raw or qcow2", value)
		}
	case "mount":
		if !strings.HasPrefix(value, "/") {
			return fmt.Errorf("mount is an absolute path in the guest, not %q", value)
		}
		d.MountPoint, d.DoMount = value, true
	case "fstype":
		d.Fstype = value
	case "data":
		d.Data = value
	default:
		options := []string{"writable", "type", "mount", "fstype", "data"}
		return fmt.Errorf("there is no option %q%s", key, suggestion(key, options))
	}
	return nil
}

// splitCommas splits at commas; two commas are one that does not split.
func splitCommas(s string) []string {
	parts := []string{""}
	for i := 0; i < len(s); i++ {
		last := &parts[len(parts)-1]
		switch {
		case s[i] != ',':
			*last += s[i : i+1]
		case i+1 < len(s) && s[i+1] == ',':
			*last += ","
			i++
		default:
			parts = append(parts, "")
		}
	}
	return parts
}
