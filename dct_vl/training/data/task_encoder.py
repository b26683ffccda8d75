"""The Energon task encoder: crude samples → planned → encoded → batches of fixed layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from megatron.energon import Cooker, DefaultTaskEncoder, Sample, basic_sample_keys, stateless

from data_prep.schema import SchemaError, image_parts, json_part, parse_record, video_parts
from dct_tokenizer import PlanError, TokenizerConfigError, VisualTokenizer
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.chat import ChatError, ChatTokenizer
from dct_vl.inputs.clips import make_clip, shorten_clips
from dct_vl.inputs.images import ImageError, header_size
from dct_vl.inputs.media import decode_media, in_order
from dct_vl.inputs.pictures import encode_pictures
from dct_vl.inputs.plan_chat import place_media
from dct_vl.inputs.rejects import RejectLog, Stage, file_of
from dct_vl.inputs.samples import CrudeChat, EncodedChat, PlannedChat
from dct_vl.inputs.video import VideoError, read_header
from dct_vl.inputs.video_rules import VideoRules
from dct_vl.training.data.worker_watch import WorkerBoard


@stateless
def cook_chat(sample: dict[str, Any]) -> CrudeChat:
    """Pick the parts of a WebDataset sample; bytes stay bytes.

    A fault in the parts goes along to where rejections are recorded: what is raised here, Energon
    would print and forget.
    """
    try:
        record = sample[json_part(sample)]
        images = tuple(sample[part] for part in image_parts(sample))
        videos = tuple(sample[part] for part in video_parts(sample))
    except SchemaError as error:
        return CrudeChat(**basic_sample_keys(sample), record=b"", images=(), fault=str(error))
    return CrudeChat(**basic_sample_keys(sample), record=record, images=images, videos=videos)


def _check_presence(kind: str, named: Sequence[str], held: Sequence[bytes]) -> None:
    """A picture that is missing would leave a question about nothing, where no mark counts it."""
    wanted = sum(map(bool, named))
    if len(held) < wanted:
        raise SchemaError(
            f"the JSON names {wanted} {kind}s, the sample holds {len(held)}: a part is missing, or "
            "its extension is none of those that data_prep/schema.py knows"
        )


class ChatTaskEncoder(DefaultTaskEncoder[CrudeChat, EncodedChat, dict, dict]):
    """Conversations with pictures and videos, one sample a batch row.

    Args:
        chat: renders and tokenises.
        visual: plans pictures and cuts them into cells.
        video: which frames are taken of videos, in place of the pixel bounds of `visual`.
        seq_length: longest sample in tokens. Of the videos of a longer one fewer frames are taken;
            what is too long even so is rejected, never cut.
        pad_to: every batch is padded to this length; None pads to the batch's longest sample,
            rounded up to `pad_multiple`.
        pad_multiple: divisor of the batch length (sequence parallelism needs the TP size).
        rejects: where left-out samples go.
        ids_per_second: temporal ids of a second of video, see `dct_vl.inputs.clips.Clip`.
    """

    cookers = [Cooker(cook_chat)]  # noqa: RUF012  (Energon reads the class attribute)
    #: crude samples stay undecoded
    decoder = None

    def __init__(
        self,
        *,
        chat: ChatTokenizer,
        visual: VisualTokenizer,
        seq_length: int,
        rejects: RejectLog,
        pad_to: int | None = None,
        pad_multiple: int = 8,
        video: VideoRules | None = None,
        ids_per_second: float | None = None,
    ) -> None:
        super().__init__()
        self.chat = chat
        self.visual = visual
        self.video = video or VideoRules()
        self.ids_per_second = ids_per_second
        self.seq_length = seq_length
        self.rejects = rejects
        self.pad_to = pad_to
        self.pad_multiple = pad_multiple
        #: where this process notes the sample that it is at; the data module hangs it up
        self.board: WorkerBoard | None = None

    @stateless
    def preencode_sample(self, sample: CrudeChat) -> PlannedChat:
        """Plan a sample from its text and its pictures' headers; nothing is decoded."""
        if self.board:
            self.board.note(f"planning {sample.__key__}")
        try:
            if sample.fault:
                raise SchemaError(sample.fault)
            record = parse_record(sample.record)
            _check_presence("image", record.images, sample.images)
            _check_presence("video", record.videos, sample.videos)
            chat = self.chat.tokenize(record.turns, len(sample.images), len(sample.videos))
            pictures = [self.visual.plan(*header_size(data)) for data in sample.images]
            wanted = tuple(
                make_clip(read_header(data), self.video, self.ids_per_second)
                for data in sample.videos
            )
            room = self.seq_length - len(chat.input_ids) + len(chat.media)
            clips = shorten_clips(
                wanted,
                self.visual,
                max_tokens=room - sum(plan.num_llm_tokens for plan in pictures),
                min_frames=self.video.min_frames,
            )
            plans = in_order(chat.media, pictures, [clip.plan(self.visual) for clip in clips])
            ids, is_answer, positions = place_media(chat, self.chat.pad_ids, plans)
        except SchemaError as error:
            self._reject(sample, "schema", str(error))
        except ChatError as error:
            self._reject(sample, error.reason, str(error))
        except (ImageError, VideoError) as error:
            self._reject(sample, "undecodable", str(error))
        except (PlanError, TokenizerConfigError) as error:
            self._reject(sample, "unplannable", str(error))
        if len(ids) > self.seq_length:
            self._reject(
                sample,
                "too_long",
                f"{len(ids)} tokens, {sum(p.num_llm_tokens for p in plans)} of them visual; "
                f"data.seq_length is {self.seq_length}",
            )
        if not is_answer[1:].any():
            self._reject(sample, "no_answer", "no token is left to predict")
        self.rejects.accept("planning")
        if clips != wanted:
            taken, all_frames = ([c.num_frames for c in cs] for cs in (clips, wanted))
            detail = f"{taken} of {all_frames} frames; data.seq_length is {self.seq_length}"
            self.rejects.note(sample.__key__, "video_shortened", detail, file=file_of(sample))
        return PlannedChat.derive_from(
            sample,
            chat=chat,
            input_ids=ids,
            is_answer=is_answer,
            position_ids=positions,
            plans=plans,
            images=sample.images,
            videos=sample.videos,
            clips=clips,
        )

    @stateless
    def postencode_sample(self, sample: PlannedChat) -> EncodedChat:
        """Decode pictures and the chosen frames of videos, and cut them into cells."""
        if self.board:
            self.board.note(f"decoding {sample.__key__}")
        placed = (sample.input_ids, sample.is_answer, sample.position_ids)
        try:
            media = decode_media(sample, self.visual)
            pictures = encode_pictures(self.visual, media.frames, media.plans)
            if self.visual.content_dependent or media.damage:
                placed = place_media(sample.chat, self.chat.pad_ids, pictures.plans)
        except (ImageError, VideoError) as error:
            self._reject(sample, "undecodable", str(error), "decoding")
        except ValueError as error:
            # pixels that contradict their header, for instance
            self._reject(sample, "unplannable", str(error), "decoding")
        for detail in media.damage:
            self.rejects.note(sample.__key__, "video_damaged", detail, file=file_of(sample))
        self.rejects.accept("decoding")
        ids, is_answer, positions = placed
        return EncodedChat.derive_from(
            sample, input_ids=ids, is_answer=is_answer, position_ids=positions, pictures=pictures
        )

    @stateless
    def batch(self, samples: list[EncodedChat]) -> dict[str, Any]:
        """Pad a micro batch; see `dct_vl.inputs.batch.pad_batch` for the fields."""
        return pad_batch(
            samples, visual=self.visual, pad_to=self.pad_to, pad_multiple=self.pad_multiple
        )

    def _reject(
        self, sample: Sample, reason: str, detail: str, stage: Stage = "planning"
    ) -> NoReturn:
        """See `RejectLog.reject`."""
        self.rejects.reject(sample.__key__, reason, detail, stage=stage, file=file_of(sample))
