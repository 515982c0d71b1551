package tremplin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// errDownloadIdle says that an image server sends nothing.
var errDownloadIdle = errors.New("the image server sends nothing")

// remoteImage is one of a simplestreams server.
type remoteImage struct {
	s             *Server
	server, alias string
}

func (r remoteImage) fetch(ctx context.Context, progress func(int32)) (_ string, _ func(), err error) {
	s := r.s
	end := s.arrival()
	defer func() { end(err) }()
	progress(0)
	d := download{idle: s.cfg.DownloadIdle, now: time.Now, size: s.arriving, progress: progress}
	op, err := s.incus.DownloadImage(ctx, r.server, r.alias)
	if err == nil {
		op, err = s.incus.Follow(ctx, op, d.look)
	}
	if err != nil {
		return "", nil, fmt.Errorf("cannot get the image %s from %s: %w", r.alias, r.server, err)
	}
	if d.percent < 100 { // Incus was asked now and then only
		progress(100)
	}
	fingerprint, err := op.Fingerprint()
	if err != nil {
		return "", nil, err
	}
	release := s.passing(fingerprint)
	if err := s.verify(ctx, fingerprint); err != nil {
		release()
		return "", nil, fmt.Errorf("the image %s from %s is not used: %w", r.alias, r.server, err)
	}
	return fingerprint, release, nil
}

// arriving is how many bytes of images Incus has.
func (s *Server) arriving() int64 {
	entries, _ := os.ReadDir(filepath.Join(s.cfg.IncusDir, "images"))
	var sum int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// A download watches an operation that fetches an image.
type download struct {
	idle     time.Duration
	now      func() time.Time
	size     func() int64
	progress func(int32)

	percent int32
	text    string
	bytes   int64
	since   time.Time // of the last sign of life
}

func (d *download) look(op incus.Operation) error {
	text, _ := op.Metadata["download_progress"].(string)
	size, now := d.size(), d.now()
	if d.since.IsZero() || text != d.text || size != d.bytes {
		d.text, d.bytes, d.since = text, size, now
	}
	if p := downloadPercent(text); p > d.percent {
		d.percent = p
		d.progress(p)
	}
	// What comes after the last byte is Incus' own work.
	if d.percent < 100 && now.Sub(d.since) >= d.idle {
		return fmt.Errorf("%w for %s", errDownloadIdle, d.idle)
	}
	return nil
}

var percentForm = regexp.MustCompile(`(\d{1,3})%`)

// downloadPercent reads Incus' words on a download. The metadata, which is
// next to nothing, counts as none.
func downloadPercent(text string) int32 {
	if strings.HasPrefix(text, "metadata") {
		return 0
	}
	m := percentForm.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return int32(min(n, 100))
}

// verify compares an image's files with its fingerprint, which their sum is:
// some servers of Incus believe what a simplestreams server says. Nor does Incus
// look at what it unpacks.
func (s *Server) verify(ctx context.Context, fingerprint string) error {
	h := sha256.New()
	for _, suffix := range []string{"", ".rootfs"} {
		f, err := os.Open(filepath.Join(s.cfg.IncusDir, "images", fingerprint+suffix))
		if errors.Is(err, os.ErrNotExist) && suffix != "" {
			continue
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(h, contextReader{ctx, f})
		f.Close()
		if err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != fingerprint {
		return fmt.Errorf("its files have the fingerprint %s instead of %s", got, fingerprint)
	}
	f, err := os.Open(filepath.Join(s.cfg.IncusDir, "images", fingerprint))
	if err != nil {
		return err
	}
	defer f.Close()
	return archive.Inspect(contextReader{ctx, f})
}

// A contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
