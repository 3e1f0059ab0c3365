package datafs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	uploads      = 4    // blocks of one file being written at once
	piecesCommit = 2048 // pieces in one commit
)

// publish commits what has been written. The caller has the inode's turn. What cannot be committed stays and is tried again by the
// next publish, except what can never be.
func (n *inode) publish(ctx context.Context) error {
	n.mu.Lock()
	n.flushing.absorb(&n.dirty)
	if len(n.flushingTail) == 0 && len(n.tail) > 0 {
		n.flushingTail, n.tail = n.tail, nil
	}
	n.accountLocked()
	ctx = dc.WithFence(dc.WithPrincipal(ctx, n.writer), n.fence)
	n.mu.Unlock()
	for !n.flushing.empty() {
		if err := n.publishRuns(ctx); err != nil {
			return n.failed(err)
		}
	}
	if len(n.flushingTail) > 0 {
		if err := n.publishTail(ctx); err != nil {
			return n.failed(err)
		}
	}
	return nil
}

// failed looks at why publishing failed: if the file is gone for good, or the lock of its fence, its data is too.
func (n *inode) failed(err error) error {
	if dc.KindOf(err) != dc.Stale {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loseLocked(err)
	n.dropLocked()
	return err
}

// known gives the content as far as it is known, and the time of the last write.
func (n *inode) known() (*file.Content, int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.content, n.mtime
}

// publishRuns commits the first runs of flushing, which is all of them unless they are very many.
func (n *inode) publishRuns(ctx context.Context) error {
	runs := n.flushing.runs[:min(len(n.flushing.runs), piecesCommit)]
	c, mtime := n.known()
	commit := &file.Commit{Ino: n.ino, Mtime: mtime}
	if r := runs[0]; len(runs) == 1 && len(r.data) <= dc.InlineFileBytes && (c == nil || fitsInline(c, r.off, len(r.data))) {
		commit.InlineOff, commit.Inline = r.off, r.data
		attr, err := n.fs.cfg.Service.Commit(ctx, *commit)
		if err == nil {
			n.committed(commit, attr, len(runs))
			return nil
		}
		if !errors.Is(err, dc.Conflict) {
			return err
		}
		commit.Inline, commit.InlineOff, c = nil, 0, nil
	}
	if fold := foldable(c, runs[0].off); fold != nil {
		runs = slices.Clone(runs)
		runs[0] = run{c.InlineOff, slices.Concat(fold, runs[0].data)}
		commit.Fold, commit.FoldLen = c.Attr.Version, int64(len(fold))
	}
	blocks := pack(runs, commit)
	if err := n.upload(ctx, blocks, commit); err != nil {
		return err
	}
	attr, err := n.fs.cfg.Service.Commit(ctx, *commit)
	if err != nil {
		return err
	}
	n.committed(commit, attr, len(runs))
	return nil
}

// pack cuts runs into blocks and notes in commit which piece lies where; a piece's block is for now its number, from 1.
func pack(runs []run, commit *file.Commit) [][]byte {
	var blocks [][]byte
	var small []byte // the block that small runs are gathered in
	piece := func(off int64, n int, block int, blockOff int64) {
		commit.Pieces = append(commit.Pieces, file.Piece{Off: off, Len: int64(n), Block: file.BlockID{Seq: uint64(block)}, BlockOff: blockOff})
	}
	closeSmall := func() {
		if len(small) > 0 {
			blocks = append(blocks, small)
			small = nil
		}
	}
	for _, r := range runs {
		for len(r.data) > 0 {
			if part := r.data[:min(len(r.data), dc.MaxBlockBytes)]; len(part) >= dc.MaxBlockBytes/4 || len(runs) == 1 {
				closeSmall()
				blocks = append(blocks, part)
				piece(r.off, len(part), len(blocks), 0)
				r = run{r.off + int64(len(part)), r.data[len(part):]}
				continue
			}
			if len(small)+len(r.data) > dc.MaxBlockBytes {
				closeSmall()
			}
			piece(r.off, len(r.data), len(blocks)+1, int64(len(small)))
			small = append(small, r.data...)
			r.data = nil
		}
	}
	closeSmall()
	return blocks
}

// upload writes the blocks and puts their names into the commit.
func (n *inode) upload(ctx context.Context, blocks [][]byte, commit *file.Commit) error {
	commit.Blocks = make([]file.Location, len(blocks))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(uploads)
	for i, b := range blocks {
		group.Go(func() (err error) {
			commit.Blocks[i], err = n.fs.cfg.Service.WriteBlock(ctx, n.ino, b)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := range commit.Pieces {
		commit.Pieces[i].Block = commit.Blocks[commit.Pieces[i].Block.Seq-1].Block
	}
	return nil
}

// committed takes in that the first runs of flushing are published.
func (n *inode) committed(commit *file.Commit, attr file.Attr, runs int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.newsLocked(commit, attr)
	rest := n.flushing.runs[runs:]
	n.flushing = buffer{runs: rest}
	for _, r := range rest {
		n.flushing.bytes += int64(len(r.data))
	}
	n.accountLocked()
}

// newsLocked takes in the outcome of a commit of our own.
func (n *inode) newsLocked(commit *file.Commit, attr file.Attr) {
	n.content = n.content.After(commit, attr)
	if attr.Version >= n.last.Version {
		n.last = attr
	}
	for _, l := range commit.Blocks {
		n.unsynced[fmt.Sprint(l.Nodes)] = l.Nodes
	}
	if len(n.dirty.runs)+len(n.tail) > 0 {
		n.since = timeOf(n.mtime)
	}
}

// publishTail appends what waits to be appended.
func (n *inode) publishTail(ctx context.Context) error {
	tail := n.flushingTail
	c, mtime := n.known()
	add := file.Append{Ino: n.ino, Mtime: mtime}
	if len(tail) <= dc.InlineFileBytes && (c == nil || fitsInline(c, c.Attr.Size, len(tail))) {
		add.Inline = tail
		attr, off, err := n.fs.cfg.Service.Append(ctx, add)
		if !errors.Is(err, dc.Conflict) {
			return n.appended(&file.Commit{InlineOff: off, Inline: tail}, attr, err)
		}
		add.Inline, c = nil, nil
	}
	if c == nil {
		fetched, err := n.fs.cfg.Service.Content(ctx, n.ino, 0)
		if err != nil {
			return err
		}
		c = &fetched
	}
	data := tail
	if fold := foldable(c, c.Attr.Size); fold != nil {
		data = slices.Concat(fold, tail)
		add.Fold, add.FoldLen = c.Attr.Version, int64(len(fold))
	}
	l, err := n.fs.cfg.Service.WriteBlock(ctx, n.ino, data)
	if err != nil {
		return err
	}
	add.Block = l
	attr, off, err := n.fs.cfg.Service.Append(ctx, add)
	p := file.Piece{Off: off, Len: int64(len(tail)), Block: l.Block, BlockOff: add.FoldLen}
	if add.Fold != 0 && attr.Version == add.Fold+1 {
		p.Off, p.Len, p.BlockOff = off-add.FoldLen, p.Len+add.FoldLen, 0
	}
	return n.appended(&file.Commit{Blocks: []file.Location{l}, Pieces: []file.Piece{p}}, attr, err)
}

// appended takes in the outcome of an append. An append whose outcome is unknown is not tried again, or it could happen twice.
func (n *inode) appended(commit *file.Commit, attr file.Attr, err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		switch dc.KindOf(err) {
		case dc.Unavailable, dc.Interrupted, dc.Internal:
			n.flushingTail = nil
			n.accountLocked()
			n.loseLocked(dc.Errorf(dc.Unavailable, "append", n.ino.String(), "it is unknown whether %d bytes were appended: %w", len(commit.Inline)+appendedBytes(commit), err))
		}
		return err
	}
	n.newsLocked(commit, attr)
	n.flushingTail = nil
	n.accountLocked()
	return nil
}

func appendedBytes(c *file.Commit) int {
	if len(c.Pieces) == 0 {
		return 0
	}
	return int(c.Pieces[0].Len)
}
