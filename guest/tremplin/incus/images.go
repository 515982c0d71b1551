package incus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net/http"
	"regexp"
	"strings"
)

// A fingerprint is the SHA-256 of an image's files. It becomes part of paths.
var fingerprintForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ValidFingerprint tells whether a word can be an image's fingerprint.
func ValidFingerprint(f string) bool { return fingerprintForm.MatchString(f) }

// An Image is one that the server has.
type Image struct {
	Fingerprint  string            `json:"fingerprint"`
	Architecture string            `json:"architecture"`
	Properties   map[string]string `json:"properties"`
	Size         int64             `json:"size"`
}

// Images lists all.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var all []Image
	_, err := c.call(ctx, http.MethodGet, "/1.0/images?recursion=1", nil, &all)
	return all, err
}

// Image returns one.
func (c *Client) Image(ctx context.Context, fingerprint string) (Image, error) {
	var i Image
	_, err := c.call(ctx, http.MethodGet, "/1.0/images/"+escape(fingerprint), nil, &i)
	return i, err
}

// DeleteImage removes an image; containers made of it stay.
func (c *Client) DeleteImage(ctx context.Context, fingerprint string) error {
	_, err := c.do(ctx, http.MethodDelete, "/1.0/images/"+escape(fingerprint), nil)
	return err
}

// DownloadImage begins to fetch an image from a simplestreams server.
func (c *Client) DownloadImage(ctx context.Context, server, alias string) (Operation, error) {
	return c.begin(ctx, http.MethodPost, "/1.0/images", map[string]any{
		"public": false, "auto_update": false,
		"source": map[string]string{
			"type": "image", "mode": "pull", "protocol": "simplestreams", "server": server, "alias": alias, "image_type": "container",
		},
	})
}

// UploadSplit gives the server an image of two files and returns its
// fingerprint. properties are kept with it.
func (c *Client) UploadSplit(ctx context.Context, metadata, rootfs io.Reader, properties string) (string, error) {
	sum := sha256.New()
	metadata, rootfs = io.TeeReader(metadata, sum), io.TeeReader(rootfs, sum)
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeForm(form, metadata, rootfs))
	}()
	// Closed by either end, the pipe lets neither wait.
	defer func() { pr.Close(); <-done }()
	return c.upload(ctx, form.FormDataContentType(), pr, sum, properties)
}

func writeForm(form *multipart.Writer, metadata, rootfs io.Reader) error {
	for _, part := range []struct {
		name string
		data io.Reader
	}{{"metadata", metadata}, {"rootfs", rootfs}} {
		w, err := form.CreateFormFile(part.name, part.name)
		if err == nil {
			_, err = io.Copy(w, part.data)
		}
		if err != nil {
			return fmt.Errorf("the image's %s: %w", part.name, err)
		}
	}
	return form.Close()
}

// Upload gives the server an image of one archive, which it must not have yet.
func (c *Client) Upload(ctx context.Context, archive *io.PipeReader, properties string) (string, error) {
	return c.upload(ctx, "application/octet-stream", archive, nil, properties)
}

// upload sends an image whose files' sum is sum, unless that is nil, once they
// have been sent.
func (c *Client) upload(ctx context.Context, kind string, body *io.PipeReader, sum hash.Hash, properties string) (string, error) {
	h := http.Header{}
	h.Set("Content-Type", kind)
	h.Set("X-Incus-Public", "0")
	if properties != "" {
		h.Set("X-Incus-Properties", properties)
	}
	a, err := c.send(bounded(ctx, body), http.MethodPost, "/1.0/images", h, body, nil)
	if err != nil {
		return "", err
	}
	op, err := operation(a, "an image")
	if err != nil {
		return "", err
	}
	if op, err = c.Wait(ctx, op); err != nil && sum == nil {
		return "", err
	} else if err != nil {
		// The server has this very image; that is as good.
		f := hex.EncodeToString(sum.Sum(nil))
		if _, gone := c.Image(ctx, f); gone == nil {
			return f, nil
		}
		return "", err
	}
	return op.Fingerprint()
}

// Fingerprint returns that of the image which an operation made.
func (o Operation) Fingerprint() (string, error) {
	f, _ := o.Metadata["fingerprint"].(string)
	if !ValidFingerprint(f) {
		return "", fmt.Errorf("Incus names an image with the fingerprint %q", strings.ToValidUTF8(f, "?"))
	}
	return f, nil
}
