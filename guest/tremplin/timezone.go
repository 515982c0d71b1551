package tremplin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// maxReasons bounds the reasons of one answer.
const maxReasons = 64

var (
	zoneForm  = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)
	posixForm = regexp.MustCompile(`^[A-Za-z0-9<>+:,./-]{1,128}$`)
)

// SetTimezone gives containers a time zone, each by its own database of zones,
// or where that has no such zone, by the variable TZ.
func (s *Server) SetTimezone(ctx context.Context, req *pb.SetTimezoneRequest) (*pb.SetTimezoneResponse, error) {
	resp := &pb.SetTimezoneResponse{}
	fail := func(err error) {
		if len(resp.FailureReasons) < maxReasons {
			resp.FailureReasons = append(resp.FailureReasons, clip(err.Error()))
		}
	}
	if len(req.TimezoneName) > 255 || !zoneForm.MatchString(req.TimezoneName) {
		fail(fmt.Errorf("%.80q is no time zone such as Europe/Paris", req.TimezoneName))
		return resp, nil
	}
	if req.PosixTzString != "" && !posixForm.MatchString(req.PosixTzString) {
		fail(fmt.Errorf("%.80q is no value of TZ", req.PosixTzString))
		return resp, nil
	}
	if !s.isStarted() && len(req.ContainerNames) == 0 {
		return resp, nil // nobody runs, and each start reads the file
	}
	if err := s.ensureLxd(ctx); err != nil {
		fail(err)
		return resp, nil
	}
	names := req.ContainerNames
	if len(names) == 0 {
		all, err := s.incus.Instances(ctx)
		if err != nil {
			fail(err)
			return resp, nil
		}
		for _, i := range all {
			if !strings.HasPrefix(i.Name, ownPrefix) {
				names = append(names, i.Name)
			}
		}
	}
	for _, name := range names {
		if err := s.setTimezone(ctx, name, req); err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
			continue
		}
		resp.Successes++
	}
	return resp, nil
}

const zoneDir = "/usr/share/zoneinfo/"

func (s *Server) setTimezone(ctx context.Context, name string, req *pb.SetTimezoneRequest) error {
	i, _, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	root, err := s.files(i)
	if err != nil {
		return err
	}
	defer root.Close()
	variable := ""
	if root.IsRegular(zoneDir + req.TimezoneName) {
		if err := root.Symlink(zoneDir+req.TimezoneName, "/etc/localtime"); err != nil {
			return err
		}
		err := root.Update("/etc/timezone", maxOsRelease, func([]byte) ([]byte, error) { return []byte(req.TimezoneName + "\n"), nil })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if variable = req.PosixTzString; variable == "" {
		return fmt.Errorf("it has no time zone %s, and there is no posix_tz_string; is its package tzdata installed?", req.TimezoneName)
	}
	want := map[string]string{"environment.TZ": variable}
	if i.Config["environment.TZ"] == variable {
		return nil
	}
	return s.incus.Change(ctx, name, want, incus.Devices{})
}
